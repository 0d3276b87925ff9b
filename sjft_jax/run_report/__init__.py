"""What the report of a run shows, gathered from its work directory and its images."""

"""The report of a run: what its work directory and its images hold, as one HTML page."""

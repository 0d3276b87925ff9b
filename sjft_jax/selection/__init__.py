"""Which source images each target image trains with."""

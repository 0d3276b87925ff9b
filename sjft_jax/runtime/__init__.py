"""Machinery that the method does not know: commands, processes, signals, artifacts, memory."""

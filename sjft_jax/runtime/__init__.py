"""Infrastructure, independent of the method: commands, processes, signals, artifacts, memory."""

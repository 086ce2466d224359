"""The surroundings of a run: storage, processes, command line, errors, and the log."""

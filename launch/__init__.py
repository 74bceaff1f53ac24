"""The command line, and the scripts that start it."""

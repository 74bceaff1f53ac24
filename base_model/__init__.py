"""Trains the small CLIP that the quickstart starts from: a tool of this repository, not installed."""

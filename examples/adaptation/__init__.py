"""Learned merges beside static ones on the quickstart tasks."""

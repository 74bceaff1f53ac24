"""``sheetbend analyse``: what merging does to adapters, and why, in pictures and numbers."""

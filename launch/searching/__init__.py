"""``sheetbend search``: the best settings of merges, found on validation data."""

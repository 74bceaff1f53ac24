"""Where examples are read from: the hub, tables on disk, the layouts in which data sets were first published."""

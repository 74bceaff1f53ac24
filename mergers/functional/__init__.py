"""Pure functions on tensors: no state, no files, no names of modules."""

"""Hostile input: seeded mutators, a harness that says what became of each input, and the targets they are given to."""

"""Three adapters of a sentence encoder on real sentence pairs."""

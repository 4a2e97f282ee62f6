"""A language model as judge of rationales."""

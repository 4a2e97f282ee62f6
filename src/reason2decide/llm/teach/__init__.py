"""A language model as teacher and editor of rationales."""

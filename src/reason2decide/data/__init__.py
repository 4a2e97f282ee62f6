"""A case and where it comes from: records, predictions, sources, checks, the words of a text."""

"""Cases and where they come from: records, predictions, sources, checks, and the words of a text."""

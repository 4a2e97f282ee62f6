"""One command from end to end: evaluate, experiment, compare, the demo."""

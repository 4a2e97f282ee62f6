"""What `import reason2decide as r2d` gives: thin over the functions that the program uses."""

"""Pages on which people review decisions, and the store of what they answer."""

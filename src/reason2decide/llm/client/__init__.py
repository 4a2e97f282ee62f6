"""Calls to a language model's server: each is on disk as soon as it is answered and never paid for twice."""

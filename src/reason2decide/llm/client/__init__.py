"""Calls to a language model's server: each answer is on disk at once and never paid for twice."""

"""Decisions over HTTP, on an ordinary server: decision-model interfaces, streamed rationales, CDS Hooks."""

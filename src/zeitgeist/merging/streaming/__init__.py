"""Merging in chunks: the fast path, whose specification is the plain functions next door."""

"""Recipes: what may be written in YAML, read with its line numbers."""

"""Steepest descent under a norm you name."""

"""Learn the next task without losing the last."""

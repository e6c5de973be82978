"""What a model knows, where, and how: probes, circuits, heads."""

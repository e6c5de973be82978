"""Claims as experiments, one file per system."""

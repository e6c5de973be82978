"""zeitgeist: the month's machine-learning research, running on your models and your data."""

__version__ = "0.1.0"

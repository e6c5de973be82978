"""The same model, cheaper: layers dropped, attention linearized, and what that can cost."""

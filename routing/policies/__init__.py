"""Routing policies, one a file; each is a frozen dataclass with a neutral setting."""

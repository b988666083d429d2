"""Parts of `routing.py`."""

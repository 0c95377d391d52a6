"""A run directory as one self-contained page."""

"""Judges that are read: what would they say next, and what has to be quoted for evidence."""

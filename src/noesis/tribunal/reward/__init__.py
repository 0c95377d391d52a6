"""A reward model before the Tribunal: its number made comparable, and its place beside the judges."""

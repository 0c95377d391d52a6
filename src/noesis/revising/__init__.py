"""Data from the constitution: prompts, critiques and revisions, soft preference labels; and what a change of its text touches."""

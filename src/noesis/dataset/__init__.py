"""Examples, from JSONL lines to token rows."""

"""The data gate: every check of `noesis data validate`."""

"""Judgement. What needs a model is handed in as a function; nothing here imports torch."""

"""Proof that a GGUF file behaves like the model that was trained."""

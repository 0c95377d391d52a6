"""GGUF files as hostile input, and how llama.cpp says what a model computes: both directions read it here."""

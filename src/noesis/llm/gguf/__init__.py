"""GGUF files: their head and vocabulary, read as hostile input before anything else reads them, and how llama.cpp says
what a model computes."""

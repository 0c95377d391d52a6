"""GGUF files as hostile input: their head and their vocabulary, read here before llama.cpp reads them."""

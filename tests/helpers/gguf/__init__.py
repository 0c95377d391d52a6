"""GGUF files for tests: the models that they are written from, and what is changed in them."""

"""Strangers' tokenizers, templates and GGUF files, read in child processes with limits."""

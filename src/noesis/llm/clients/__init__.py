"""Clients of a model: endpoints that speak the OpenAI protocol, GGUF files, torch models."""

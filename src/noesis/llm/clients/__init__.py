"""Ways to ask a model: endpoints that speak the OpenAI protocol, GGUF files, torch models."""

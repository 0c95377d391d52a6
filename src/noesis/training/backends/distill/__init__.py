"""Self-distillation: the backend, and the trainer that samples and scores."""

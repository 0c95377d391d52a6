"""A GGUF file as a model to train: read, checked, and written once as safetensors, config.json and tokenizer."""

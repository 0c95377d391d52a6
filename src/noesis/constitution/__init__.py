"""The constitution: what Noesis values, the principles that follow, and how a conversation is put before a model."""

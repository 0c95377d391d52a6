"""Training data made from the constitution."""

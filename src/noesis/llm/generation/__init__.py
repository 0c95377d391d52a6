"""Answers in batches by torch: on a CPU by a growing cache, on a GPU without a round trip a token."""

"""Answers in batches by torch: on a CPU with a cache that grows and shrinks, on a GPU without a round trip a token."""

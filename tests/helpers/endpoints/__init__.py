"""Endpoints that answer anything at all, and the client that asks them."""

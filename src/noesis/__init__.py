"""Noesis: a constitution and about a hundred examples become a small model that can be trusted to speak by them."""

__version__ = "0.1.0"

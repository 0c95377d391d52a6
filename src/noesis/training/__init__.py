"""Token rows in, adapters out."""

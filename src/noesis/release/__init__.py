"""A trained adapter made into models that others can run."""

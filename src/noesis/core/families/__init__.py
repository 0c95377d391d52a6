"""What each family of models computes, read from its config.json; a family is a file (docs/families.md)."""

"""What runs inside Modal containers."""

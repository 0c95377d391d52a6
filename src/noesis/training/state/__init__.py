"""What training keeps on disk, and an exact resume from it."""

"""What training broke: small tasks with known answers, by the base and by the tuned model, scored by code alone."""

"""Fine-tuning: plan → rows → base with adapter → trainer; and the scores that need the model's own probabilities."""

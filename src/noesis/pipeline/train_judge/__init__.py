"""`noesis tribunal train-judge`: pairs, a reward model trained on them, its folder."""

"""Experiment trackers: TensorBoard and others are told what a run measures."""

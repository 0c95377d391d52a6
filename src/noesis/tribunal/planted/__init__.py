"""Faults planted by code in good answers: material to train a judge on, as many pairs as one likes."""

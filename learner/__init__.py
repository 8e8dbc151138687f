"""Gradients: batches in, updated weights out. Imports `volley.rollout` only."""

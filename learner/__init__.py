"""Gradients: batches in, updated weights out. Of this project imports only `rollout`'s ground."""

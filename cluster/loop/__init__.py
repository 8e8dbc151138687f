"""The training loop and what it calls at every step."""

"""Weights on the wire: vLLM's weight-transfer backends, ours among them, and the client that drives a push."""

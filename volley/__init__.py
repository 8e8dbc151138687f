"""Volley: post-training of language models with online reinforcement learning and preference learning."""

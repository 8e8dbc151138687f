"""Learner ranks under DeepSpeed, and the group that drives them."""

"""Rewards that depend on the length of a response."""

"""Runs programs that nobody trusts. See `rewards.sandbox.box` for the door; the rest is what stands behind it."""

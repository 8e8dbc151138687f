"""Runs programs that nobody trusts. See `box` for the door; the rest is what stands behind it."""

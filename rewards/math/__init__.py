"""The math verifier: `verify(response, answer)`, `extract(response)`, `equivalent(a, b)`."""

from volley.rewards.math.verifier import equivalent, extract, verify

__all__ = ["equivalent", "extract", "verify"]

"""The code verifier: `verify(response, tests)` and `extract(response)`."""

from volley.rewards.code.verifier import extract, verify

__all__ = ["extract", "verify"]

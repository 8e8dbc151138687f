"""The code verifier.

    verify(response, tests, setup="", **options) -> bool    whether the response's program passes all tests
    extract(response) -> str | None                         the program in the response

`tests` is a list of assert statements, a list of {"input", "output"} pairs, or one of the other forms in
`volley.rewards.code.cases`. `setup` is Python text that runs before the assert statements. The options are those of
`volley.rewards.code.verifier.reward`. Programs run in a sandbox; `verify` raises RewardError if this system cannot
provide one, and Unscorable for tests that cannot be used.
"""

from volley.rewards.code.verifier import extract, verify

__all__ = ["extract", "verify"]

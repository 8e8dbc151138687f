"""Soft penalty for overlong responses (DAPO)."""

from typing import Any


def reward(
    prompt: str,
    response: str,
    answer: str,
    *,
    num_tokens: int,
    max_tokens: int,
    cache_tokens: int = 0,
    **row: Any,
) -> float:
    """Soft overlong punishment of DAPO, arXiv 2503.14476, equation 13; in [-1, 0], to be added to another reward.

        R(y) = 0                                   if |y| <= L_max - L_cache
               ((L_max - L_cache) - |y|) / L_cache if L_max - L_cache < |y| <= L_max
               -1                                  if |y| > L_max

    - num_tokens: |y|, provided by the scorer.
    - max_tokens: L_max, usually `rollout.max_tokens`.
    - cache_tokens: L_cache, the length of the slope. 0 means a fifth of max_tokens, as in the paper (4,096 of 20,480).

    Raises ValueError if the limits do not define a slope.
    """
    cache = cache_tokens or max(1, max_tokens // 5)
    if not 0 < cache <= max_tokens:
        raise ValueError(
            f"max_tokens is {max_tokens} and cache_tokens is {cache_tokens}; cache_tokens must be between 0 "
            "(a fifth of max_tokens) and max_tokens, and max_tokens must be above 0"
        )
    return -min(1.0, max(0.0, (num_tokens - (max_tokens - cache)) / cache))

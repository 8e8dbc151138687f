"""Rewards that depend on a completion's length: cosine-scaled, a target band, repetition, relative to the group.

Lengths are in tokens. Soft over-long punishment is in rewards/length.py. `group_relative` is a pure function of a whole
group; the term that calls it is in rewards/length_group.py.
"""

import math
from collections.abc import Sequence
from typing import Any

from volley.rewards.math import verifier as math_reward

MAX_WORDS = 20_000


def cosine(
    prompt: str,
    response: str,
    answer: str,
    *,
    num_tokens: int,
    max_tokens: int,
    truncated: bool = False,
    tolerance: float = 0.0,
    correct_short: float = 1.0,
    correct_long: float = 0.5,
    wrong_short: float = -1.0,
    wrong_long: float = 0.0,
    exceeded: float = -1.0,
    **row: Any,
) -> float:
    """Cosine-scaled length reward, arXiv 2502.03373, section 4; takes the place of `math`, in the range of its options.

        R = exceeded                                             if L >= max_tokens
            long + (short - long) * (1 + cos(pi L / max_tokens)) / 2   otherwise,

    with the two values for correct answers or the two for wrong ones, as `math` judges, with the row's tolerance. Right
    answers earn more for being short, wrong ones lose less for being long. The paper's values are 2 to 1 for correct
    answers, -10 to 0 for wrong ones, exceeded -10; the defaults keep their signs and order and fit [-1, 1].
    Raises ValueError for max_tokens below 1, Unscorable as `math` does.
    """
    _check_positive("max_tokens", max_tokens)
    verdict = math_reward.reward(prompt, response, answer, truncated=truncated, tolerance=tolerance)
    if num_tokens >= max_tokens:
        return exceeded
    short, long = (correct_short, correct_long) if verdict == 1.0 else (wrong_short, wrong_long)
    return cosine_between(num_tokens / max_tokens, short, long)


def quick_cosine(
    prompt: str,
    response: str,
    answer: str,
    *,
    num_tokens: int,
    max_tokens: int,
    truncated: bool = False,
    tolerance: float = 0.0,
    **options: Any,
) -> float | None:
    """`cosine` where the verdict takes microseconds, else None."""
    judged: dict[str, Any] = {"truncated": truncated, "tolerance": tolerance}
    if math_reward.quick_reward(prompt, response, answer, **judged) is None:
        return None
    return cosine(prompt, response, answer, num_tokens=num_tokens, max_tokens=max_tokens, **judged, **options)


def cosine_between(part: float, start: float, end: float) -> float:
    """Half a cosine wave from `start` at part 0 to `end` at part 1."""
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


def band(
    prompt: str,
    response: str,
    answer: str,
    *,
    num_tokens: int,
    low: int = 50,
    high: int = 150,
    shoulder: int = 50,
    **row: Any,
) -> float:
    """1.0 for low <= L <= high, falling to 0.0 in a straight line over `shoulder` tokens on both sides; in [0, 1].

    The defaults suit concise support answers. shoulder 0: nothing outside the band. Raises ValueError for limits that
    make no band.
    """
    if not 0 <= low <= high or shoulder < 0:
        raise ValueError(
            f"low {low}, high {high}, shoulder {shoulder} make no band; needed: 0 <= low <= high, 0 <= shoulder"
        )
    outside = max(low - num_tokens, num_tokens - high, 0)
    if not outside:
        return 1.0
    return max(0.0, 1.0 - outside / shoulder) if shoulder else 0.0


def repetition(prompt: str, response: str, answer: str, *, ngram: int = 20, **row: Any) -> float:
    """Punishment of repeated n-grams, after arXiv 2502.03373 (n-gram repetition penalty); in [-1, 0].

    Minus the share of words that stand in an n-gram which occurred before. The paper punishes each such token by a
    constant; here it is one number for the response, of words, since a reward sees no tokens. Looks at the last
    `MAX_WORDS` words. Raises ValueError for ngram below 1.
    """
    _check_positive("ngram", ngram)
    words = response.split()[-MAX_WORDS:]
    seen: set[tuple[str, ...]] = set()
    num_repeated, counted_to = 0, 0
    for start in range(len(words) - ngram + 1):
        gram = tuple(words[start : start + ngram])
        if gram in seen:
            num_repeated += start + ngram - max(start, counted_to)
            counted_to = start + ngram
        seen.add(gram)
    return -num_repeated / len(words) if num_repeated else 0.0


def group_relative(num_tokens: Sequence[int], correct: Sequence[bool]) -> list[float]:
    """Length reward of Kimi k1.5, arXiv 2501.12599, section 2.3.3, for the completions of one prompt; in [-0.5, 0.5].

        lambda_i = 0.5 - (L_i - min L) / (max L - min L)
        R_i = lambda_i if correct, min(0, lambda_i) if not; 0 for all where the lengths are the same.

    Raises ValueError for arguments of different sizes.
    """
    if len(num_tokens) != len(correct):
        raise ValueError(
            f"there are {len(num_tokens)} lengths but {len(correct)} verdicts; give one of each per completion"
        )
    shortest, longest = min(num_tokens, default=0), max(num_tokens, default=0)
    if shortest == longest:
        return [0.0] * len(num_tokens)
    scaled = [0.5 - (length - shortest) / (longest - shortest) for length in num_tokens]
    return [value if is_correct else min(0.0, value) for value, is_correct in zip(scaled, correct, strict=True)]


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")

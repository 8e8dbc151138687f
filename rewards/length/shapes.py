"""Rewards that shape the length of one response: cosine-scaled, a target band, repetition. Lengths are in tokens."""

import math
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
    """Cosine-scaled length reward, arXiv 2502.03373, section 4. It replaces `math`; its range is that of its options.

        R = exceeded                                             if L >= max_tokens
            long + (short - long) * (1 + cos(pi L / max_tokens)) / 2   otherwise

    `short` and `long` are the two values for correct answers or the two for wrong ones, as decided by `math` with the
    row's tolerance. Correct answers earn more for being short; wrong answers lose less for being long. The paper uses
    2 to 1 for correct answers, -10 to 0 for wrong ones, and -10 for exceeded; the defaults keep the signs and the order
    within [-1, 1]. Raises ValueError for max_tokens below 1, and Unscorable when `math` does.
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
    """`cosine` if the verdict takes microseconds, else None."""
    judged: dict[str, Any] = {"truncated": truncated, "tolerance": tolerance}
    if math_reward.quick_reward(prompt, response, answer, **judged) is None:
        return None
    return cosine(prompt, response, answer, num_tokens=num_tokens, max_tokens=max_tokens, **judged, **options)


def cosine_between(fraction: float, start: float, end: float) -> float:
    """Half a cosine wave from `start` at fraction 0 to `end` at fraction 1."""
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2


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
    """1.0 for low <= L <= high, falling linearly to 0.0 over `shoulder` tokens on both sides; in [0, 1].

    The defaults suit concise support answers. With shoulder 0 every length outside the band gives 0.0.
    Raises ValueError if the limits do not define a band.
    """
    if not 0 <= low <= high or shoulder < 0:
        raise ValueError(
            f"low {low}, high {high} and shoulder {shoulder} do not define a band; required: 0 <= low <= high and "
            "0 <= shoulder"
        )
    outside = max(low - num_tokens, num_tokens - high, 0)
    if not outside:
        return 1.0
    return max(0.0, 1.0 - outside / shoulder) if shoulder else 0.0


def repetition(prompt: str, response: str, answer: str, *, ngram: int = 20, **row: Any) -> float:
    """Penalty for repeated n-grams, after arXiv 2502.03373 (n-gram repetition penalty); in [-1, 0].

    Minus the fraction of words that are part of an n-gram which occurred before. The paper penalises each such token by
    a constant; here it is one number per response, based on words, because a reward does not see tokens. Only the last
    `MAX_WORDS` words are checked. Raises ValueError for ngram below 1.
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


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")

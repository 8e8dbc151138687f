"""Per-row choice: the column `verifier` names what judges the row, so that mixed data sets work."""

from collections.abc import Callable, Mapping
from typing import Any

from volley.rewards import json_schema
from volley.rewards.code import verifier as code
from volley.rewards.item import Unscorable
from volley.rewards.math import verifier as math


def exact_words(prompt: str, response: str, answer: str, *, truncated: bool = False, **row: Any) -> float:
    """1.0 where the extracted answer has the words of the gold one, whatever their case and spacing; else 0.0.
    Raises Unscorable for an empty gold answer, and where finding the response's takes too long."""
    gold = answer.casefold().split()
    if not gold:
        raise Unscorable("the row's answer is empty")
    given = math.extract_answer(prompt, response, answer, truncated=truncated)
    return float(given is not None and given.casefold().split() == gold)


VERIFIERS: dict[str, Callable[..., float]] = {
    "math": math.reward,
    "json_schema": json_schema.reward,
    "exact_words": exact_words,
    "code": code.reward,
}
QUICK: dict[str, Callable[..., float | None]] = {
    "math": math.quick_reward,
    "json_schema": json_schema.quick_reward,
    "exact_words": exact_words,
    "code": code.quick_reward,
}
# What each takes for the response's answer.
READS: dict[str, Callable[..., str | None]] = {
    "math": math.extract_answer,
    "json_schema": json_schema.found,
    "exact_words": math.extract_answer,
    "code": code.found,
}


def reward(prompt: str, response: str, answer: str, *, verifier: str = "math", **row: Any) -> float:
    """What the row's verifier says, with the row's other columns as its options, but for null ones; `math` where the
    data has no such column. Raises Unscorable for an unknown or empty name, and as the verifier does."""
    return VERIFIERS[_known(verifier)](prompt=prompt, response=response, answer=answer, **_given(row))


def quick_reward(prompt: str, response: str, answer: str, *, verifier: str = "math", **row: Any) -> float | None:
    """`reward` where the row's verifier takes microseconds, else None."""
    return QUICK[_known(verifier)](prompt=prompt, response=response, answer=answer, **_given(row))


def found(prompt: str, response: str, answer: str, *, verifier: str = "math", **row: Any) -> str | None:
    """What the row's verifier takes for the response's answer, None where there is none."""
    return READS[_known(verifier)](prompt=prompt, response=response, answer=answer, **_given(row))


def _given(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def _known(name: Any) -> str:
    if isinstance(name, str) and name in VERIFIERS:
        return name
    shown = f"'{name[:50]}'" if isinstance(name, str) else f"a value of type {type(name).__name__}"
    raise Unscorable(f"the row's column 'verifier' is {shown}; it must be one of {', '.join(VERIFIERS)}")

"""The reward `verifier`: each row names its verifier in the column `verifier`, so that data sets can be mixed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from volley.rewards import json_schema
from volley.rewards.code import verifier as code
from volley.rewards.item import Unscorable
from volley.rewards.math import verifier as math


def exact_words(prompt: str, response: str, answer: str, *, truncated: bool = False, **row: Any) -> float:
    """1.0 if the extracted answer has the words of the gold answer, ignoring case and spacing; else 0.0.

    Raises Unscorable for an empty gold answer, and if extracting the response's answer takes too long.
    """
    gold = answer.casefold().split()
    if not gold:
        raise Unscorable("the row's answer is empty")
    given = math.extract_answer(prompt, response, answer, truncated=truncated)
    return float(given is not None and given.casefold().split() == gold)


@dataclass(frozen=True)
class Verifier:
    """A verifier that a row can name. The fields are those of `registry.BuiltIn`."""

    reward: Callable[..., float]
    quick: Callable[..., float | None]
    extract_answer: Callable[..., str | None]


VERIFIERS = {
    "math": Verifier(math.reward, math.quick_reward, math.extract_answer),
    "json_schema": Verifier(json_schema.reward, json_schema.quick_reward, json_schema.extract_answer),
    "exact_words": Verifier(exact_words, exact_words, math.extract_answer),
    "code": Verifier(code.reward, code.quick_reward, code.extract_answer),
}


def reward(prompt: str, response: str, answer: str, *, verifier: str = "math", **row: Any) -> float:
    """The verdict of the row's verifier, or of `math` if the data has no such column.

    The row's other columns are the verifier's options; null columns are left out. Raises Unscorable for an unknown or
    empty name, and when the verifier does.
    """
    return _find(verifier).reward(prompt=prompt, response=response, answer=answer, **_without_null(row))


def quick_reward(prompt: str, response: str, answer: str, *, verifier: str = "math", **row: Any) -> float | None:
    """`reward` if the row's verifier takes microseconds, else None."""
    return _find(verifier).quick(prompt=prompt, response=response, answer=answer, **_without_null(row))


def extract_answer(prompt: str, response: str, answer: str, *, verifier: str = "math", **row: Any) -> str | None:
    """The answer that the row's verifier finds in the response; None if there is none."""
    return _find(verifier).extract_answer(prompt=prompt, response=response, answer=answer, **_without_null(row))


def _without_null(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def _find(name: Any) -> Verifier:
    if isinstance(name, str) and name in VERIFIERS:
        return VERIFIERS[name]
    shown = f"'{name[:50]}'" if isinstance(name, str) else f"a value of type {type(name).__name__}"
    raise Unscorable(f"the row's column 'verifier' is {shown}; it must be one of {', '.join(VERIFIERS)}")

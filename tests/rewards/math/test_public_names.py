"""The public functions of `volley.rewards.math`: names, signatures and documented examples."""

import doctest
import importlib
import inspect

import pytest

import volley.rewards.math

SIGNATURES = {
    "verify": "(response: str, answer: str, tolerance: float = 0.0, limit_s: float = 2.0) -> bool",
    "extract": "(response: str, truncated: bool = False) -> str | None",
    "equivalent": "(a: str, b: str, tolerance: float = 0.0, limit_s: float = 2.0) -> bool",
}


def test_signatures_are_the_documented_ones() -> None:
    assert set(volley.rewards.math.__all__) == set(SIGNATURES)
    for name, signature in SIGNATURES.items():
        assert str(inspect.signature(getattr(volley.rewards.math, name))) == signature
        assert f"    {name}{signature}\n" in (volley.rewards.math.__doc__ or "")


@pytest.mark.parametrize("name", ["volley.rewards.math", "volley.rewards.math.verifier"])
def test_examples_in_the_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0

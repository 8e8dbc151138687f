"""The package math-verify as a reward, to hold our own verifier against: `volley.rewards.math.math_verify:reward`.

This module is imported in the scoring child only, where this reward is asked for; the package then loads with it, not
on the first answer's time. Its own timers are off, which is its faster way; the child's time limit stands in for them.
It hands text to sympy's parsers, which our own verifier never does: not for the answers of a model that somebody
hostile has steered.
"""

import logging
import re
from typing import Any

import math_verify

from volley.rewards.item import Unscorable
from volley.rewards.math.extraction import extract

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns of its timers at every call
_NUMBER = re.compile(r"-?[0-9][0-9,.]*")


def reward(prompt: str, response: str, answer: str, **row: Any) -> float:
    """1.0 where math-verify takes the response's answer for the gold one, else 0.0. Raises Unscorable where it reads
    nothing in the gold answer."""
    stated = (extract(answer) or "") if "\\boxed" in answer or "####" in answer else answer
    golds = math_verify.parse(stated if _NUMBER.fullmatch(stated) else f"${stated}$", parsing_timeout=None)
    if not golds:
        raise Unscorable("math-verify reads nothing in the gold answer")
    given = math_verify.parse(response, parsing_timeout=None)
    return float(math_verify.verify(golds, given, timeout_seconds=None))

"""The package math-verify as a reward, for comparison with our verifier: `volley.rewards.math.math_verify:reward`.

Only a scoring child whose recipe asks for this reward imports this module. The package is imported with it, so that the
first answer does not pay for the import. The timers of math-verify are off, because it is faster without them; the time
limit of the child replaces them.

Security: math-verify passes text to the parsers of sympy, which our verifier never does. Do not use it for a model
whose output an attacker may control.
"""

import logging
import re
from typing import Any

import math_verify

from volley.rewards.item import Unscorable
from volley.rewards.math.extraction import extract

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs a warning about its timers at every call
_NUMBER = re.compile(r"-?[0-9][0-9,.]*")


def reward(prompt: str, response: str, answer: str, **row: Any) -> float:
    """Return 1.0 if math-verify finds that the response's answer equals the gold answer, else 0.0.

    Raises Unscorable if math-verify cannot parse the gold answer.
    """
    gold = (extract(answer) or "") if "\\boxed" in answer or "####" in answer else answer
    golds = math_verify.parse(gold if _NUMBER.fullmatch(gold) else f"${gold}$", parsing_timeout=None)
    if not golds:
        raise Unscorable("math-verify cannot parse the gold answer")
    given = math_verify.parse(response, parsing_timeout=None)
    return float(math_verify.verify(golds, given, timeout_seconds=None))

r"""The math verifier: does the answer of a response equal the gold answer?

    verify(response: str, answer: str, tolerance: float = 0.0, limit_s: float = 2.0) -> bool
    extract(response: str, truncated: bool = False) -> str | None
    equivalent(a: str, b: str, tolerance: float = 0.0, limit_s: float = 2.0) -> bool

None of the three raises, whatever the text.

>>> from volley.rewards.math import equivalent, extract, verify
>>> verify(r"16 - 7 = 9 eggs at $2 each make \boxed{18} dollars.", "#### 18")
True
>>> extract("Adding both, the answer is 3/4.")
'3/4'
>>> equivalent(r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}")
True

The folders, each of which imports only those before it:

    expressions/    formulas: parsing, evaluating, comparing
    answers/        answers: normalizing, parsing, comparing, with units and words
    (here)          responses: hidden_text, retraction, statement, extraction, gold, verifier
"""

from volley.rewards.math.verifier import equivalent, extract, verify

__all__ = ["equivalent", "extract", "verify"]

"""Shared by the tests of the math verifier: labelled cases, strategies for arbitrary text, and the scorer."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from hypothesis import strategies as st

from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.types import Completion, Prompt, Score, as_token_ids

CASES: list[dict[str, str]] = [
    json.loads(line) for line in Path(__file__).with_name("math_cases.jsonl").read_text().splitlines()
]
"""Labelled responses: topic, answer, response, verdict (right, wrong, none, unscorable) and why."""

LATEX_LIKE = st.text(alphabet="0123456789xyei+-*/^=_(){}[],. \\$%!<>|", max_size=30)
"""Characters that occur in formulas, in any order."""
_TOKENS = r"""
\frac \sqrt \pi \pm \cup \infty \sin \log_2 \binom \{ \} \left( \right) { } ( ) [ ] 1 2 30 0.5 x y i e
+ - * / ^ _ , = < \le \in \text{cm} cm % \circ : and or PM ! |
"""
FORMULA_LIKE = st.lists(st.sampled_from(_TOKENS.split()), max_size=12).map(" ".join)
"""Tokens that occur in formulas, in any order."""
_NUMBER = st.one_of(st.integers(-9, 9).map(str), st.sampled_from(["x", "y", r"\pi", r"\sqrt{2}", "e"]))
FORMULA = st.recursive(
    _NUMBER,
    lambda inner: st.one_of(
        st.builds("({}+{})".format, inner, inner),
        st.builds("({}-{})".format, inner, inner),
        st.builds(r"{}\cdot {}".format, inner, inner),
        st.builds(r"\frac{{{}}}{{{}}}".format, inner, inner),
        st.builds("({})^2".format, inner),
        st.builds(r"\sqrt{{{}}}".format, inner),
        st.builds(r"\sin({})".format, inner),
    ),
    max_leaves=8,
)
"""Formulas that are well-formed."""


def boxed(text: str) -> str:
    return f"\\boxed{{{text}}}"


async def math_scores(scorer: Scorer, responses_and_golds: Sequence[tuple[str, str]]) -> list[Score]:
    """Score responses against gold answers, all at once."""
    prompts = [Prompt(0, 0, "", as_token_ids(()), gold) for _, gold in responses_and_golds]
    completions = [Completion.single((), (), response, "stop", 0, 0) for response, _ in responses_and_golds]
    return list(await asyncio.gather(*map(scorer.score, prompts, completions)))


def math_scorer(workers: int, limit_s: float | None = None) -> Scorer:
    options = {} if limit_s is None else {"limit_s": limit_s}
    return Scorer([RewardConfig("math", options=options)], ScorerConfig(workers=workers))

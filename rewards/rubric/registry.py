"""The built-in rewards. To add a reward, write one file and add one entry here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from volley.rewards import json_schema, think_format
from volley.rewards.code import verifier as code
from volley.rewards.length import overlong, shapes
from volley.rewards.math import verifier as math
from volley.rewards.rubric import row_verifier

Reward = Callable[..., Any]


@dataclass(frozen=True)
class BuiltIn:
    """A reward that a recipe names without a path."""

    reward: Reward
    """The reward itself."""
    quick: Reward
    """A variant that takes microseconds on any text, so that the driver can call it. None means: run `reward`."""
    always_quick: bool = False
    """Whether `quick` never returns None. Such a reward needs no scoring process."""
    extract_answer: Callable[..., str | None] | None = None
    """For verifiers: the answer that the reward finds in the response; None if there is none."""
    grade_extracted: Reward | None = None
    """Grades an extracted answer without its response, if the reward can do that."""
    quick_grade_extracted: Reward | None = None
    """The quick variant of `grade_extracted`."""


BUILT_IN: dict[str, BuiltIn] = {
    "math": BuiltIn(
        math.reward,
        quick=math.quick_reward,
        extract_answer=math.extract_answer,
        grade_extracted=math.grade_extracted,
        quick_grade_extracted=math.quick_grade_extracted,
    ),
    "think_format": BuiltIn(think_format.reward, quick=think_format.reward, always_quick=True),
    "length": BuiltIn(overlong.reward, quick=overlong.reward, always_quick=True),
    "json_schema": BuiltIn(
        json_schema.reward, quick=json_schema.quick_reward, extract_answer=json_schema.extract_answer
    ),
    "code": BuiltIn(code.reward, quick=code.quick_reward, extract_answer=code.extract_answer),
    "length_cosine": BuiltIn(shapes.cosine, quick=shapes.quick_cosine),
    "length_band": BuiltIn(shapes.band, quick=shapes.band, always_quick=True),
    "repetition": BuiltIn(shapes.repetition, quick=shapes.repetition, always_quick=True),
    "verifier": BuiltIn(
        row_verifier.reward, quick=row_verifier.quick_reward, extract_answer=row_verifier.extract_answer
    ),
}

# Rewards that score whole groups. Their classes are listed in `volley.rewards.scoring.group_terms`, because scoring
# processes import this module and do not need their dependencies.
GROUP_TERMS = ("judge", "reward_model", "length_group")

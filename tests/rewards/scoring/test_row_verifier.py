"""A mixed data set: each row is judged by what its column names."""

from typing import Any

import pytest

from volley.rewards.config import RewardConfig
from volley.rewards.item import Item, Unscorable
from volley.rewards.scoring.row_verifier import QUICK, VERIFIERS, reward
from volley.rewards.scoring.rubric import Rubric


@pytest.mark.parametrize(
    ("response", "answer", "row", "value"),
    [
        (r"\boxed{2/4}", "1/2", {}, 1.0),
        (r"\boxed{2/4}", "1/2", {"verifier": "math"}, 1.0),
        (r"\boxed{2/4}", "1/2", {"verifier": "exact_words"}, 0.0),
        (r"<answer>New  york</answer>", "New York", {"verifier": "exact_words"}, 1.0),
        ('{"a": 1}', '{"a": 1.0}', {"verifier": "json_schema"}, 1.0),
        ('{"a": 1}', "", {"verifier": "json_schema", "schema": {"required": ["b"]}}, 0.0),
    ],
)
def test_rows_through_the_rubric(response: str, answer: str, row: dict[str, Any], value: float) -> None:
    rubric = Rubric([RewardConfig("verifier")])
    rubric.load()
    assert rubric(Item("", response, answer, 7, False, row)).reward == value


@pytest.mark.parametrize("name", ["maths", "", None, 3])
def test_unknown_verifier(name: Any) -> None:
    with pytest.raises(Unscorable, match="must be one of math, json_schema, exact_words"):
        reward("", "1", "1", verifier=name)


def test_both_tables_agree() -> None:
    assert set(QUICK) == set(VERIFIERS)

"""A mixed data set: each row is judged by the verifier that its column names."""

from typing import Any

import pytest

from volley.rewards.config import RewardConfig
from volley.rewards.item import Item, Unscorable
from volley.rewards.rubric.row_verifier import reward
from volley.rewards.rubric.rubric import Rubric


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
def test_each_row_uses_its_verifier(response: str, answer: str, row: dict[str, Any], value: float) -> None:
    rubric = Rubric([RewardConfig("verifier")])
    rubric.load()
    assert rubric(Item("", response, answer, 7, False, row)).reward == value


@pytest.mark.parametrize("name", ["maths", "", None, 3])
def test_an_unknown_verifier_is_unscorable(name: Any) -> None:
    with pytest.raises(Unscorable, match="must be one of math, json_schema, exact_words"):
        reward("", "1", "1", verifier=name)

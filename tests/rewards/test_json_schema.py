"""JSON answers: exact and field-wise comparison, schemas, and hostile text."""

import json
from typing import Any

import pytest

from volley.rewards.item import Unscorable
from volley.rewards.json_schema import MAX_DEPTH, field_f1, reward

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("response", "answer", "value"),
    [
        ('{"a": 1, "b": [2]}', '{"b": [2.0], "a": 1}', 1.0),
        ('Here:\n```json\n{"a": 1}\n```\nDone.', '{"a": 1}', 1.0),
        ('<think>{"a": 1}</think>{"a": 2}', '{"a": 1}', 0.0),
        ('<think>{"a": 1}', '{"a": 1}', 0.0),
        ('{"a": true}', '{"a": 1}', 0.0),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', 0.0),
        ('{"a": 1, "a": 1}', '{"a": 1}', 0.0),
        ("null", "null", 1.0),
        ("NaN", "null", 0.0),
        ("{}", "[]", 0.0),
        ("no JSON", "1", 0.0),
    ],
)
def test_exact(response: str, answer: str, value: float) -> None:
    assert reward("", response, answer) == value


def test_fields() -> None:
    gold = json.dumps({"a": 1, "b": {"c": 2, "d": 3}})
    assert reward("", '{"a": 1, "b": {"c": 2, "d": 4}}', gold, fields=True) == pytest.approx(2 / 3)
    assert reward("", '{"a": 1}', gold, fields=True) == pytest.approx(2 * 1 / 4)
    assert field_f1({"a": []}, {"a": []}) == 1.0


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)])
def test_schema(schema: Any) -> None:
    assert reward("", '{"a": 1}', "", schema=schema) == 1.0
    assert reward("", '{"a": "1"}', "", schema=schema) == 0.0
    assert reward("", "{}", '{"a": 1}', schema=schema, fields=True) == 0.0
    assert reward("", '{"a": 2}', '{"a": 1}', schema=schema) == 0.0


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 5000 + "]" * 5000, "9" * 60_000, '"' + "\\" * 50_000, '"x' * 30_000]
)
def test_hostile_text_is_wrong(text: str) -> None:
    assert reward("", text, "1") == 0.0


def test_brackets_in_strings_do_not_count_as_depth() -> None:
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert reward("", deep, deep) == 1.0
    assert reward("", f"[{deep}]", "1") == 0.0
    assert reward("", json.dumps("[" * 1000), json.dumps("[" * 1000)) == 1.0


@pytest.mark.parametrize(
    ("answer", "schema"),
    [
        ("", None),
        ("not JSON", None),
        ("", "{"),
        ("", "3"),
        ("", {"type": "nonsense"}),
        ("", {"$ref": "http://127.0.0.1:9/schema.json"}),
    ],
)
def test_unscorable_rows(answer: str, schema: Any) -> None:
    with pytest.raises(Unscorable):
        reward("", "1", answer, schema=schema)

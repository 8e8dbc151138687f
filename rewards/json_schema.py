"""JSON answers: whether they are valid under a schema, and whether they equal the gold value.

Size and depth of the text are limited before it is parsed. Remote references of a schema are never fetched.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from volley.rewards.item import Unscorable
from volley.rewards.think_format import after_thinking, with_opened_thinking

MAX_CHARACTERS = 65_536
MAX_DEPTH = 32

_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")


def reward(
    prompt: str,
    response: str,
    answer: str,
    *,
    schema: Mapping[str, Any] | str | bool | None = None,
    fields: bool = False,
    **row: Any,
) -> float:
    """1.0 for JSON that is valid under `schema` and equals `answer`, else 0.0. Either of the two may be missing.

    The JSON is the text after thinking, or the content of its last code fence.

    - schema: a column or an option; a mapping or JSON text.
    - answer: the gold value as JSON, or "".
    - fields: instead of all or nothing 2 m / (g + a), in [0, 1], where the gold value has g leaves, the answer has a
      leaves, and m leaves have the same path and value in both. Still 0.0 if the schema is violated.

    Numbers are compared by value, true is not 1, keys have no order, and lists have an order. Invalid JSON, duplicate
    keys, NaN, and more than `MAX_CHARACTERS` or `MAX_DEPTH` give 0.0. Raises Unscorable if the gold value or the schema
    cannot be used.
    """
    if not answer.strip() and schema is None:
        raise Unscorable("the row has neither a JSON answer nor a schema")
    gold = _gold(answer) if answer.strip() else None
    rules = _schema(schema)
    try:
        given = parse(_json_text(prompt, response))
    except ValueError:
        return 0.0
    if rules is not None and not is_valid(given, rules):
        return 0.0
    if gold is None:
        return 1.0
    f1 = field_f1(given, gold[0])
    return f1 if fields else float(f1 == 1.0)


def quick_reward(
    prompt: str, response: str, answer: str, *, schema: Mapping[str, Any] | str | bool | None = None, **row: Any
) -> float | None:
    """`reward` if there is no schema to check, else None, because the patterns of a schema may take any time."""
    return reward(prompt, response, answer, **row) if schema is None else None


def extract_answer(prompt: str, response: str, answer: str, **row: Any) -> str | None:
    """The JSON text that `reward` finds in the response; None if there is none."""
    text = _json_text(prompt, response)
    try:
        parse(text)
    except ValueError:
        return None
    return text


def parse(text: str) -> Any:
    """The value of a JSON text. Raises ValueError if it is invalid, too large, too deep or ambiguous."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"JSON with more than {MAX_CHARACTERS} characters is refused")
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"JSON nested deeper than {MAX_DEPTH} is refused")
    return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)


def is_valid(value: Any, schema: Mapping[str, Any] | bool) -> bool:
    """Whether a value is valid under a JSON schema, using `jsonschema`. Raises Unscorable for an invalid schema."""
    try:
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry
        from referencing.exceptions import Unresolvable
    except ImportError:
        raise Unscorable("checking a JSON schema needs the package jsonschema; install it") from None
    validator = validator_for(schema, default=Draft202012Validator)
    try:
        validator.check_schema(schema)
        return bool(validator(schema, registry=Registry()).is_valid(value))
    except (SchemaError, Unresolvable, re.error) as error:
        raise Unscorable(f"the row's schema cannot be used: {str(error)[:100]}") from None


def field_f1(given: Any, gold: Any) -> float:
    """F1 score of the leaves: 2 m / (g + a), see `reward`. An empty list or object is a leaf."""
    given_leaves, gold_leaves = dict(_leaves(given, ())), dict(_leaves(gold, ()))
    num_same = sum(path in given_leaves and given_leaves[path] == value for path, value in gold_leaves.items())
    return 2 * num_same / (len(given_leaves) + len(gold_leaves))


def _leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], tuple[str, Any]]]:
    if value and isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, (*path, key))
    else:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        yield path, ("number" if is_number else type(value).__name__, value)


def _gold(answer: str) -> tuple[Any]:
    try:
        return (parse(answer),)
    except ValueError as error:
        raise Unscorable(f"the answer is not valid JSON: {str(error)[:100]}") from None


def _schema(schema: Mapping[str, Any] | str | bool | None) -> Mapping[str, Any] | bool | None:
    try:
        rules = parse(schema) if isinstance(schema, str) else schema
    except ValueError as error:
        raise Unscorable(f"the schema is not valid JSON: {str(error)[:100]}") from None
    if rules is not None and not isinstance(rules, (Mapping, bool)):
        raise Unscorable("the schema must be a JSON object, true or false")
    return rules


def _json_text(prompt: str, response: str) -> str:
    return _fenced(after_thinking(with_opened_thinking(prompt, response)) or "")


def _fenced(text: str) -> str:
    before, fence, _ = text.rpartition("```")
    inside = before.rpartition("```")[2] if fence and before.count("```") else text
    return inside.strip().removeprefix("json").strip()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key in an object")
    return result


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not valid JSON")

"""The parser of recipes: plain YAML to typed dataclasses, with one clear sentence for every mistake."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any

import yaml

from volley.rollout.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Safe YAML that also refuses duplicate keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key '{key}'", key_node.start_mark)
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str) -> Any:
    """The plain value of YAML text. Errors name `where` and the line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        if "could not determine a constructor for the tag" in problem:
            problem = "YAML object tags (!...) are not allowed in a recipe; write plain values"
        raise ConfigError(f"{place}: {problem}.") from None


def parse(kind: Any, value: Any, where: str) -> Any:
    """`value` (plain YAML) as `kind`: a dataclass, int, float, bool, str, dict, or a tuple of these."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_section(typing.cast(Any, kind), value, where)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        return None if value is None else parse(options[0], value, where)
    if origin is tuple:
        return _parse_tuple(typing.get_args(kind), value, where)
    if origin is dict:
        value_kind = typing.get_args(kind)[1]
        if not isinstance(value, dict):
            raise _wrong_type(where, value, "keys and values")
        return {str(key): parse(value_kind, entry, f"{where}.{key}") for key, entry in value.items()}
    return value if kind is Any else _parse_scalar(kind, value, where)


def _parse_section(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong_type(where, value, "a section with keys")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, 1)
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"it has {', '.join(fields)}."
            raise ConfigError(f"unknown key '{prefix}{key}' in {where or 'the recipe'}; {hint}")
    for name, entry in fields.items():
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise ConfigError(f"the recipe has no '{prefix}{name}'; add it.")
    return kind(**{key: parse(hints[key], entry, f"{prefix}{key}") for key, entry in value.items()})


def _parse_tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, (str, dict)) or not isinstance(value, Sequence):
        raise _wrong_type(where, value, "a list")
    if kinds[-1] is Ellipsis:
        return tuple(parse(kinds[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if len(value) != len(kinds):
        raise ConfigError(f"{where} has {len(value)} entries; it must have {len(kinds)}.")
    return tuple(parse(k, entry, f"{where}[{i}]") for i, (k, entry) in enumerate(zip(kinds, value, strict=True)))


def _parse_scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-6 as text, which is never intended.
        try:
            value = float(value)
        except ValueError:
            raise _wrong_type(where, value, "a number") from None
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if value != value or value in (float("inf"), float("-inf")):
            raise ConfigError(f"{where} is {value}; it must be a finite number.")
        return float(value)
    if type(value) is kind:
        return value
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise _wrong_type(where, value, names.get(kind, kind.__name__))


def _wrong_type(where: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{where or 'the recipe'} is {value!r}; it must be {expected}.")


def apply_override(content: dict[str, Any], override: str) -> None:
    """Apply `key=value` to `content`; dots in the key lead into sections."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"'{override}' is not an override; write key=value, for instance steps=50 or loss.clip_high=0.3."
        )
    target = content
    *parents, last = key.strip().split(".")
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise ConfigError(f"override '{override}': '{parent}' is not a section of the recipe, so it has no keys.")
    target[last] = read_yaml(value, f"override '{override}'")

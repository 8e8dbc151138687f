"""Whether a reward can be called with the data and options of a run, and how it is called with an item."""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from volley.rewards.item import ITEM_ARGUMENTS, Item, Unscorable
from volley.rewards.rubric.registry import BUILT_IN, Reward
from volley.rollout.errors import RewardError

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_REQUIRED = ("prompt", "response", "answer")


def check_reward(
    function: Reward, columns: Collection[str] | None = None, name: str = "", options: Mapping[str, Any] | None = None
) -> None:
    """Raise RewardError unless `function` can be called with keyword arguments for each item.

    It must accept `prompt`, `response` and `answer`. Every other required parameter must be a column of the data, an
    option of the recipe, `num_tokens` or `truncated`. columns: None if the columns of the data are not known yet.
    """
    name, options = name or getattr(function, "__name__", "?"), options or {}
    if inspect.iscoroutinefunction(function):
        raise RewardError(f"reward '{name}' is asynchronous; write it as a plain 'def' that returns a number.")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise RewardError(f"reward '{name}': its signature cannot be read; wrap it in a plain 'def'.") from None
    named = {each.name for each in parameters if each.kind in _NAMED}
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    missing = [each for each in _REQUIRED if each not in named]
    if missing and not takes_all:
        raise RewardError(
            f"reward '{name}' does not take {quoted(missing)} by keyword; define it as "
            "def reward(prompt, response, answer, **row)."
        )
    _check_options(name, options, named, takes_all and name not in BUILT_IN)
    known = {*ITEM_ARGUMENTS, *options, *(columns or ())}
    for each in parameters:
        required = each.default is inspect.Parameter.empty and each.kind in (*_NAMED, inspect.Parameter.POSITIONAL_ONLY)
        if not required or (each.kind in _NAMED and (each.name in known or columns is None)):
            continue
        hint = did_you_mean(each.name, known) + (f"; the columns are {quoted(sorted(columns))}" if columns else "")
        raise RewardError(
            f"reward '{name}' requires '{each.name}', which is neither a column of the data nor an option in the "
            f"recipe{hint}."
        )


def _check_options(name: str, options: Mapping[str, Any], named: Collection[str], takes_all: bool) -> None:
    for option in options:
        if option in ITEM_ARGUMENTS:
            raise RewardError(
                f"reward '{name}': the option '{option}' would override an argument that every reward gets; rename it."
            )
        if option not in named and not takes_all:
            takes = [each for each in sorted(named) if each not in ITEM_ARGUMENTS]
            raise RewardError(
                f"reward '{name}' has no option '{option}'{did_you_mean(option, takes)}; "
                f"its options are {quoted(takes) or 'none'}."
            )


def check_built_in(name: str, options: Mapping[str, Any]) -> None:
    """Raise RewardError if options of a built-in reward are missing, unknown or invalid."""
    function = BUILT_IN[name].reward
    check_reward(function, (), name, options)
    try:
        bind(function, options)(Item("", "", "0", 0, False, {}))
    except (TypeError, ValueError) as error:
        raise RewardError(f"reward '{name}': {error}; fix its options in the recipe.") from None
    except Unscorable:
        pass


def bind(function: Reward, options: Mapping[str, Any]) -> Callable[..., Any]:
    """Turn `function` into a function of an item, optionally followed by positional arguments.

    It gets the arguments that it names, or all of them if it takes `**row`. Options override data columns of the same
    name. A null column leaves a parameter at its default, because Parquet files have null where a row lacks a column.
    """
    parameters = inspect.signature(function).parameters.values()
    named = {each.name for each in parameters if each.kind in _NAMED}
    optional = {each.name for each in parameters if each.kind in _NAMED and each.default is not inspect.Parameter.empty}
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)

    def call(item: Item, *by_position: Any) -> Any:
        offered = item.arguments().items()
        arguments = {key: value for key, value in offered if value is not None or key not in optional} | dict(options)
        if not takes_all:
            arguments = {key: value for key, value in arguments.items() if key in named}
        return function(*by_position, **arguments)

    return call


def did_you_mean(word: str, known: Collection[str]) -> str:
    """A hint for an error message; "" if nothing is similar."""
    near = difflib.get_close_matches(word, [each for each in known if each != word], n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def quoted(names: Collection[str]) -> str:
    """The names in quotes, separated by commas."""
    return ", ".join(f"'{name}'" for name in names)

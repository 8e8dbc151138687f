"""From a reward's name in a recipe to the function: built in, in a file, or in a package.

Loading runs the user's code. Volley does it in child processes only, so that a module that hangs or dies at import
takes nothing with it.
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from volley.rewards import json_schema, think_format
from volley.rewards.code import verifier as code
from volley.rewards.item import ITEM_ARGUMENTS, Item, Unscorable
from volley.rewards.length import overlong, shapes
from volley.rewards.math import verifier as math
from volley.rewards.scoring import row_verifier
from volley.rollout.errors import RewardError

Reward = Callable[..., Any]

# A new reward is one file and one line here.
BUILT_IN: dict[str, Reward] = {
    "math": math.reward,
    "think_format": think_format.reward,
    "length": overlong.reward,
    "json_schema": json_schema.reward,
    "code": code.reward,
    "length_cosine": shapes.cosine,
    "length_band": shapes.band,
    "repetition": shapes.repetition,
    "verifier": row_verifier.reward,
}
# Built-in rewards that the caller may compute itself: microseconds on any text, None where it does take a child.
CHEAP: dict[str, Reward] = {
    "math": math.quick_reward,
    "think_format": think_format.reward,
    "length": overlong.reward,
    "json_schema": json_schema.quick_reward,
    "code": code.quick_reward,
    "length_cosine": shapes.quick_cosine,
    "length_band": shapes.band,
    "repetition": shapes.repetition,
    "verifier": row_verifier.quick_reward,
}
# Of those that judge an answer, what they take for it; None where there is none.
READS: dict[str, Callable[..., str | None]] = {
    "math": math.extract_answer,
    "json_schema": json_schema.found,
    "code": code.found,
    "verifier": row_verifier.found,
}
# Of those, what judges such an answer without its response: as CHEAP does, and in full.
JUDGES: dict[str, tuple[Reward, Reward]] = {"math": (math.quick_grade_extracted, math.grade_extracted)}
ALWAYS_CHEAP = frozenset({"think_format", "length", "length_band", "repetition"})
# Built in too, but no plain functions: see volley.rewards.scoring.group_terms.
GROUP_TERMS = ("judge", "reward_model", "length_group")

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_REQUIRED = ("prompt", "response", "answer")


def load_reward(name: str) -> Reward:
    """The function behind a name: a built-in, `path/to/file.py:function` (relative to the current directory) or
    `package.module:function` (the current directory included). Raises `RewardError`."""
    place, colon, attribute = name.rpartition(":")
    if not colon:
        check_name(name)
        return BUILT_IN[name]
    module = _load_file(name, place) if _is_file(place) else _load_module(name, place)
    if not hasattr(module, attribute):
        functions = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise RewardError(f"reward '{name}': there is no '{attribute}' in {place}{_hint(attribute, functions)}.")
    function: Reward = getattr(module, attribute)
    if not callable(function):
        raise RewardError(f"reward '{name}': '{attribute}' is a {type(function).__name__}, not a function.")
    return function


def check_name(name: str) -> None:
    """Raises `RewardError` for a name that is neither built in nor says where its function is."""
    if ":" in name or name in BUILT_IN:
        return
    if name.endswith(".py"):
        raise RewardError(f"reward '{name}' names a file but no function; write '{name}:FUNCTION'.")
    known = [*BUILT_IN, *GROUP_TERMS]
    raise RewardError(
        f"reward '{name}' is not built in{_hint(name, known)}; built in are {', '.join(known)}, and your own "
        "function is named as my_file.py:function or package.module:function."
    )


def check_reward(
    function: Reward, columns: Collection[str] | None = None, name: str = "", options: Mapping[str, Any] | None = None
) -> None:
    """Raise `RewardError` unless `function` can be called by keyword with what a reward is given.

    It must take `prompt`, `response` and `answer`, and whatever else it requires must be a column of the data, an
    option of the recipe, or `num_tokens` or `truncated`. columns: None where the data's columns are not known yet.
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
            f"reward '{name}' does not take {_listed(missing)} by keyword; define it as "
            "def reward(prompt, response, answer, **row)."
        )
    _check_options(name, options, named, takes_all and name not in BUILT_IN)
    known = {*ITEM_ARGUMENTS, *options, *(columns or ())}
    for each in parameters:
        required = each.default is inspect.Parameter.empty and each.kind in (*_NAMED, inspect.Parameter.POSITIONAL_ONLY)
        if not required or (each.kind in _NAMED and (each.name in known or columns is None)):
            continue
        raise RewardError(
            f"reward '{name}' requires '{each.name}', which is no column of the data and no option of the "
            f"recipe{_hint(each.name, known)}{'; the columns are ' + _listed(sorted(columns)) if columns else ''}."
        )


def _check_options(name: str, options: Mapping[str, Any], named: Collection[str], takes_all: bool) -> None:
    for option in options:
        if option in ITEM_ARGUMENTS:
            raise RewardError(
                f"reward '{name}': the option '{option}' would replace what a reward is given; rename it."
            )
        if option not in named and not takes_all:
            takes = [each for each in sorted(named) if each not in ITEM_ARGUMENTS]
            raise RewardError(
                f"reward '{name}' has no option '{option}'{_hint(option, takes)}; it takes {_listed(takes) or 'none'}."
            )


def check_built_in(name: str, options: Mapping[str, Any]) -> None:
    """Raise `RewardError` for options that a built-in reward lacks, does not have, or cannot work with."""
    check_reward(BUILT_IN[name], (), name, options)
    try:
        bind(BUILT_IN[name], options)(Item("", "", "0", 0, False, {}))
    except (TypeError, ValueError) as error:
        raise RewardError(f"reward '{name}': {error}; mend its options in the recipe.") from None
    except Unscorable:
        pass


def bind(function: Reward, options: Mapping[str, Any]) -> Callable[..., Any]:
    """`function` as a function of an item: it is given the arguments that it names, or all of them if it takes `**row`,
    behind those by position that follow the item. Options win over data columns of the same name. A column that is null
    leaves a parameter its default: in Parquet, that is how a row lacks a column which others have."""
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


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place


def _load_file(name: str, place: str) -> ModuleType:
    path = Path(place).expanduser().absolute()
    if not path.is_file():
        others = [str(each.name) for each in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise RewardError(f"reward '{name}': the file {path} does not exist{_hint(path.name, others)}.")
    # A name of its own, so that a user's math.py is not taken for the standard library's.
    unique = f"reward_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if unique in sys.modules:
        return sys.modules[unique]
    _add_to_path(path.parent)
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise RewardError(f"reward '{name}': {path} is no Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[unique]
        raise _import_failed(name, str(path), error) from error
    return module


def _load_module(name: str, place: str) -> ModuleType:
    _add_to_path(Path.cwd())
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise _import_failed(name, place, error) from error


def _import_failed(name: str, place: str, error: BaseException) -> RewardError:
    if isinstance(error, SyntaxError):
        where = f"{error.filename}:{error.lineno}"
    else:
        frames = [each for each in traceback.extract_tb(error.__traceback__) if not _is_machinery(each.filename)]
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else place
    message = " ".join(str(error).split())
    return RewardError(f"reward '{name}' cannot be imported: {type(error).__name__}: {message} ({where}).")


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or filename in (__file__, importlib.__file__)


def _add_to_path(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.append(str(directory))


def _hint(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, [each for each in known if each != word], n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _listed(names: Collection[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)

"""From a reward's name in a recipe to its function: built in, in a file, or in a package.

Loading runs user code. Volley does it only in scoring processes, so that a module that hangs or crashes at import
cannot take the run with it.
"""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from volley.rewards.rubric.registry import BUILT_IN, GROUP_TERMS, Reward
from volley.rewards.rubric.signature import did_you_mean
from volley.rollout.errors import RewardError

# Modules of earlier versions that recipes may still name.
MOVED_MODULES = {
    "rewards.code": "volley.rewards.code.verifier",
    "rewards.json_schema": "volley.rewards.json_schema",
    "rewards.length": "volley.rewards.length.overlong",
    "rewards.length_shapes": "volley.rewards.length.shapes",
    "rewards.math": "volley.rewards.math.verifier",
    "rewards.math_verify": "volley.rewards.math.math_verify",
    "rewards.think_format": "volley.rewards.think_format",
    "rewards.verifier": "volley.rewards.rubric.row_verifier",
}


def load_reward(name: str) -> Reward:
    """The function of a reward. Raises RewardError.

    The name is built in, `path/to/file.py:function` (relative to the current directory), or
    `package.module:function` (importable, also from the current directory).
    """
    place, colon, attribute = name.rpartition(":")
    if not colon:
        check_name(name)
        return BUILT_IN[name].reward
    module = _load_file(name, place) if _is_file(place) else _load_module(name, place)
    if not hasattr(module, attribute):
        _check_moved(name, place, attribute)
        functions = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise RewardError(f"reward '{name}': there is no '{attribute}' in {place}{did_you_mean(attribute, functions)}.")
    function: Reward = getattr(module, attribute)
    if not callable(function):
        raise RewardError(f"reward '{name}': '{attribute}' is a {type(function).__name__}, not a function.")
    return function


def check_name(name: str) -> None:
    """Raise RewardError for a name that is neither built in nor the path of a function."""
    if ":" in name or name in BUILT_IN:
        return
    if name.endswith(".py"):
        raise RewardError(f"reward '{name}' names a file but no function; write '{name}:FUNCTION'.")
    known = [*BUILT_IN, *GROUP_TERMS]
    raise RewardError(
        f"reward '{name}' is not built in{did_you_mean(name, known)}; the built-in rewards are {', '.join(known)}; "
        "name your own function as my_file.py:function or package.module:function."
    )


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place


def _load_file(name: str, place: str) -> ModuleType:
    path = Path(place).expanduser().absolute()
    if not path.is_file():
        others = [str(each.name) for each in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise RewardError(f"reward '{name}': the file {path} does not exist{did_you_mean(path.name, others)}.")
    # A unique module name, so that a user's math.py does not shadow the standard library's.
    unique = f"reward_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if unique in sys.modules:
        return sys.modules[unique]
    _add_to_path(path.parent)
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise RewardError(f"reward '{name}': {path} is not a Python file; its name must end in .py.")
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
        if isinstance(error, ModuleNotFoundError) and error.name in ("rewards", place):
            _check_moved(name, place, name.rpartition(":")[2])
        raise _import_failed(name, place, error) from error


def _check_moved(name: str, place: str, attribute: str) -> None:
    """Raise RewardError with the new name if the module had another name in an earlier version."""
    if place in MOVED_MODULES:
        new_name = f"{MOVED_MODULES[place]}:{attribute}"
        raise RewardError(
            f"reward '{name}': the module {place} was renamed; write '{new_name}' in the recipe."
        ) from None


def _import_failed(name: str, place: str, error: BaseException) -> RewardError:
    if isinstance(error, SyntaxError):
        where = f"{error.filename}:{error.lineno}"
    else:
        frames = [each for each in traceback.extract_tb(error.__traceback__) if not _is_import_code(each.filename)]
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else place
    message = " ".join(str(error).split())
    return RewardError(f"reward '{name}' cannot be imported: {type(error).__name__}: {message} ({where}).")


def _is_import_code(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or filename in (__file__, importlib.__file__)


def _add_to_path(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.append(str(directory))

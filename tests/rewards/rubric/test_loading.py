"""Loading rewards by name, and the error messages when that fails."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import volley
from volley.rewards.rubric.loading import MOVED_MODULES, load_reward
from volley.rewards.rubric.registry import BUILT_IN
from volley.rollout.errors import RewardError

ROOT = Path(volley.__file__).parent.parent


def write(directory: Path, text: str, name: str = "mine.py") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_built_in_rewards() -> None:
    assert load_reward("math") is BUILT_IN["math"].reward


def test_a_file_can_import_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "VALUE = 0.25\n", "neighbour_of_mine.py")
    write(tmp_path, "from neighbour_of_mine import VALUE\ndef concise(prompt, response, answer, **row): return VALUE\n")
    monkeypatch.chdir(tmp_path)
    assert load_reward("mine.py:concise")("", "", "") == 0.25
    assert load_reward(f"{tmp_path}/mine.py:concise") is load_reward("./mine.py:concise")


def test_a_package_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reward_package_here").mkdir()
    write(tmp_path / "reward_package_here", "def f(prompt, response, answer): return 0.5\n", "deep.py")
    monkeypatch.chdir(tmp_path)
    assert load_reward("reward_package_here.deep:f")("", "", "") == 0.5


def test_a_file_named_like_a_standard_module(tmp_path: Path) -> None:
    path = write(tmp_path, "import math\ndef f(prompt, response, answer): return math.sqrt(4.0)\n", "math.py")
    assert load_reward(f"{path}:f")("", "", "") == 2.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "'maths' is not built in; did you mean 'math'?"),
        ("nothing like it", "the built-in rewards are math, think_format, length"),
        ("mine.py", "names a file but no function; write 'mine.py:FUNCTION'"),
        ("nowhere.py:f", "nowhere.py does not exist"),
        ("mien.py:f", "does not exist; did you mean 'mine.py'?"),
        ("mine.py:concize", "there is no 'concize' in mine.py; did you mean 'concise'?"),
        ("mine.py:NUMBER", "'NUMBER' is a int, not a function"),
        ("raises.py:f", r"cannot be imported: KeyError: 'gone' \(.*/raises.py:3\)"),
        ("syntax.py:f", r"cannot be imported: SyntaxError: .* \(.*/syntax.py:2\)"),
        ("exits.py:f", r"cannot be imported: SystemExit: 3 \(.*/exits.py:2\)"),
        ("no_such_package.inside:f", "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_names_that_cannot_be_loaded(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "NUMBER = 3\ndef concise(prompt, response, answer): return 0.0\n")
    write(tmp_path, "x = {}\n\nx['gone']\n", "raises.py")
    write(tmp_path, "x = 1\ndef f(:\n", "syntax.py")
    write(tmp_path, "import sys\nsys.exit(3)\n", "exits.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RewardError, match=message) as caught:
        load_reward(name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"reward '{name}'")


@pytest.fixture
def no_rewards_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the checkout, in which the directory `rewards` is importable as a package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each and Path(each) != ROOT])
    for name in [name for name in sys.modules if name.split(".")[0] == "rewards"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "rewards"]:
        del sys.modules[name]


@pytest.mark.usefixtures("no_rewards_package")
@pytest.mark.parametrize("module", MOVED_MODULES)
def test_a_module_name_of_an_earlier_version_gets_a_hint(module: str) -> None:
    function = "cosine" if module == "rewards.length_shapes" else "reward"
    new_name = f"{MOVED_MODULES[module]}:{function}"
    assert callable(load_reward(new_name))
    with pytest.raises(RewardError, match=f"the module {module} was renamed; write '{new_name}' in the recipe"):
        load_reward(f"{module}:{function}")


@pytest.mark.usefixtures("no_rewards_package")
def test_a_module_name_of_an_earlier_version_that_became_a_package_gets_a_hint(tmp_path: Path) -> None:
    (tmp_path / "rewards" / "math").mkdir(parents=True)
    write(tmp_path / "rewards" / "math", "verify = print\n", "__init__.py")
    with pytest.raises(RewardError, match=r"write 'volley.rewards.math.verifier:reward' in the recipe"):
        load_reward("rewards.math:reward")


@pytest.mark.usefixtures("no_rewards_package")
def test_a_user_module_with_an_old_name_is_loaded_as_usual(tmp_path: Path) -> None:
    (tmp_path / "rewards").mkdir()
    write(tmp_path / "rewards", "import not_installed_at_all\n", "math.py")
    with pytest.raises(RewardError, match="No module named 'not_installed_at_all'"):
        load_reward("rewards.math:reward")

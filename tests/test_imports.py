"""The directions of import, and the modules that alone may import the heavy packages."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "rollout": {"rollout"},
    "rewards": {"rewards", "rollout.types", "rollout.errors"},
    "learner": {"learner", "rollout"},
    "cluster": {"cluster", "learner", "rewards", "rollout"},
}
ONLY_IN = {
    "ray": {"cluster/ray_", "cluster/submit.py"},
    "deepspeed": {"learner/zero.py"},
    "aiohttp": {"rewards/chat_client.py", "rewards/fake_endpoint.py"},
    "vllm": {"rollout/vllm_engine.py", "rollout/async_vllm_engine.py", "rollout/transport", "learner/weights.py"},
}
# What a check of a recipe runs before it knows that anything is worth starting: these start in a blink.
LIGHT = ("rollout/config.py", "rollout/rows.py", "rollout/model_files.py", "cluster/config.py", "cluster/cli.py")
LIGHT += ("rewards/scorer.py", "rewards/group_terms.py", "rewards/judge.py", "rewards/reward_model.py")
HEAVY = {"torch", "transformers", "vllm", "deepspeed", "ray", "datasets", "math_verify", "sympy"}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def within(name: str, allowed: set[str]) -> bool:
    return any(name == entry or name.startswith(entry + ".") for entry in allowed)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_the_right_way(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    allowed = PACKAGES[place.split("/")[0]]
    own = {name for name in imports(path) if name.split(".")[0] in PACKAGES}
    assert all(within(name, allowed) for name in own), f"{place} imports {sorted(own)}"
    for package, places in ONLY_IN.items():
        if any(name.split(".")[0] == package for name in imports(path)):
            assert any(place.startswith(allowed_place) for allowed_place in places), f"{place} imports {package}"


@pytest.mark.parametrize("place", LIGHT)
def test_light_modules_stay_light(place: str) -> None:
    heavy = {name for name in imports(ROOT / place, top_level_only=True) if name.split(".")[0] in HEAVY}
    assert not heavy

"""The directions of imports, no import cycles, and the modules that alone may import the heavy packages."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "rollout": {"volley.rollout"},
    "rewards": {"volley.rewards", "volley.rollout.types", "volley.rollout.errors"},
    "learner": {"volley.learner", "volley.rollout"},
    "cluster": {"volley.cluster", "volley.learner", "volley.rewards", "volley.rollout"},
}
ONLY_IN = {
    "ray": {"cluster/on_ray/"},
    "deepspeed": {"learner/ranks/zero.py"},
    "aiohttp": {"rewards/judge/chat_client.py", "rewards/judge/fake_endpoint.py"},
    "vllm": {"rollout/engines/", "rollout/transport/", "learner/ranks/weights.py"},
}
# Modules that the check of a recipe imports before anything heavy starts; they must import in milliseconds.
LIGHT = (
    "rollout/config.py",
    "rollout/data/rows.py",
    "rollout/model_files.py",
    "cluster/recipe/config.py",
    "cluster/cli/main.py",
    "rewards/scoring/scorer.py",
    "rewards/scoring/group_terms.py",
    "rewards/judge/judge.py",
    "rewards/reward_model.py",
)
HEAVY = {"torch", "transformers", "vllm", "deepspeed", "ray", "datasets", "math_verify", "sympy"}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_MODULES = 15


def module_of(path: Path) -> str:
    return ".".join(("volley", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_of(path) for path in FILES}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """The modules that a file imports; `from package import module` counts as the module."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES) or {node.module}
    return found


def within(name: str, allowed: set[str]) -> bool:
    return any(name == entry or name.startswith(entry + ".") for entry in allowed)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_the_right_way(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    allowed = PACKAGES[place.split("/")[0]]
    found = imports(path)
    own = {name for name in found if name.split(".")[0] == "volley" and name != "volley"}
    assert all(within(name, allowed) for name in own), f"{place} imports {sorted(own)}"
    assert not any(name.split(".")[0] in PACKAGES for name in found), f"{place}: write volley.NAME"
    for package, places in ONLY_IN.items():
        if any(name.split(".")[0] == package for name in found):
            assert any(place.startswith(allowed_place) for allowed_place in places), f"{place} imports {package}"


@pytest.mark.parametrize("place", LIGHT)
def test_light_modules_stay_light(place: str) -> None:
    heavy = {name for name in imports(ROOT / place, top_level_only=True) if name.split(".")[0] in HEAVY}
    assert not heavy


def test_no_folder_is_crowded() -> None:
    sizes = Counter(path.parent.relative_to(ROOT) for path in FILES if path.name != "__init__.py")
    assert {str(place): size for place, size in sizes.items() if size > MAX_MODULES} == {}


def cycles(edges: dict[str, set[str]]) -> list[set[str]]:
    """The strongly connected components with more than one member."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        pending = [start]
        while pending:
            for name in edges.get(pending.pop(), set()) - seen:
                seen.add(name)
                pending.append(name)
        return seen

    reach = {name: reachable(name) for name in edges}
    found = {frozenset(other for other in reach[name] if name in reach.get(other, ())) for name in edges}
    return sorted((set(component) for component in found if len(component) > 1), key=sorted)


def test_modules_have_no_import_cycle() -> None:
    """Imports inside functions and under TYPE_CHECKING count, too."""
    assert cycles({module_of(path): (imports(path) & MODULES) - {module_of(path)} for path in FILES}) == []


def test_rooms_have_no_import_cycle() -> None:
    """A room is a folder; modules directly in a package are rooms of their own."""

    def room(module: str) -> str:
        parts = module.split(".")
        return ".".join(parts[:3]) if ".".join(parts[:3]) + "." in " ".join(f"{m}." for m in MODULES) else module

    edges: dict[str, set[str]] = {}
    for path in FILES:
        if path.name == "__init__.py":
            continue  # a package's public names
        here = room(module_of(path))
        edges.setdefault(here, set()).update({room(name) for name in imports(path) & MODULES} - {here})
    assert cycles(edges) == []

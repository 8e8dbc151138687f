"""The documentation: paths and links lead somewhere, and the recipe reference has every key and its default."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from volley.cluster.recipe.config import LossConfig, Recipe
from volley.learner.losses import LOSSES
from volley.rewards.config import RewardConfig

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *(ROOT / "benchmarks").glob("*.md"),
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "deploy").glob("*.md"),
    ]
)
PATH = re.compile(r"`((?:rollout|rewards|learner|cluster|recipes|benchmarks|deploy|docs|tests|examples)/[\w./-]*)`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[\w-]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_and_links_exist(page: Path) -> None:
    text = page.read_text()
    missing = [path for path in PATH.findall(text) if "NAME" not in path and not (ROOT / path).exists()]
    missing += [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    assert missing == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def keys(section: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(section)
    for entry in dataclasses.fields(section):
        kind: Any = hints[entry.name]
        if kind is LossConfig:
            yield f"{prefix}{entry.name}.name"
        elif dataclasses.is_dataclass(kind):
            yield from keys(kind, f"{prefix}{entry.name}.")  # type: ignore[arg-type]
        elif entry.name == "rewards":
            yield from keys(RewardConfig, "rewards[].")
        else:
            yield prefix + entry.name


def test_the_recipe_reference_has_every_key() -> None:
    rows = [line for line in (ROOT / "docs" / "recipe.md").read_text().splitlines() if line.startswith("| `")]
    documented = [key for row in rows for key in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted(documented) == sorted([*keys(Recipe), "stages"])


@pytest.mark.parametrize("name", LOSSES)
def test_the_page_of_methods_has_every_loss_and_its_options(name: str) -> None:
    """Defaults that differ from those of the shared options, or that no other loss has."""
    text = (ROOT / "docs" / "methods.md").read_text()
    assert f"| `{name}` |" in text
    (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    losses: dict[str, Any] = dict(LOSSES)
    shared = {entry.name: entry.default for entry in dataclasses.fields(losses["grpo"])}
    for entry in dataclasses.fields(losses[name]):
        if shared.get(entry.name, dataclasses.MISSING) != entry.default:
            assert f"`{entry.name}` " in row
            if isinstance(entry.default, (int, float)) and not isinstance(entry.default, bool):
                found = re.search(rf"`{entry.name}` ([\d.e-]+)", row)
                assert found is None or float(found[1].rstrip(".")) == entry.default

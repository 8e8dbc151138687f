"""One run, one directory, one process."""

from pathlib import Path

import pytest

from volley.cluster.recipe.config import load_recipe, parse_recipe
from volley.cluster.storage.directory import RunDirectory
from volley.rollout.errors import CheckpointError, ConfigError

RECIPE = parse_recipe({"name": "a", "model": "m", "data": {"train": "t"}, "steps": 9})


def test_a_directory_in_use_is_refused_until_it_is_free(tmp_path: Path) -> None:
    first, second = RunDirectory(tmp_path / "a"), RunDirectory(tmp_path / "a")
    first.open(RECIPE)
    with pytest.raises(ConfigError, match="is in use by process"):
        second.open(RECIPE)
    first.close()
    second.open(RECIPE)
    second.close()


def test_an_opened_directory_holds_the_resolved_recipe(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a")
    directory.open(RECIPE)
    directory.close()
    assert load_recipe(str(tmp_path / "a" / "recipe.yaml")) == RECIPE


def test_an_existing_run_is_neither_overwritten_nor_resumed_implicitly(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a")
    directory.check(resume=False)
    with pytest.raises(CheckpointError, match="does not exist"):
        directory.check(resume=True)
    assert not (tmp_path / "a").exists()
    directory.open(RECIPE)
    directory.close()
    with pytest.raises(ConfigError, match="already holds a run"):
        directory.check(resume=False)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        directory.check(resume=True)

"""Fixtures of the whole runs."""

from pathlib import Path

import pytest

from cluster.demo import make_model, write_problems


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model, problems, and room for runs/."""
    root = tmp_path_factory.mktemp("workspace")
    make_model(root / "model", seed=0)
    write_problems(root / "data", seed=0)
    return root

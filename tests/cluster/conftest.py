"""Fixtures for tests of whole runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from volley.cluster.cli.demo import make_model, write_problems
from volley.cluster.cli.main import main


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model and problems, in which runs are started."""
    root = tmp_path_factory.mktemp("workspace")
    make_model(root / "model", seed=0)
    write_problems(root / "data", seed=0)
    return root


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `volley train recipe.yaml` with overrides; returns the exit code and the error, after checking its form."""

    def refuse(*overrides: str) -> tuple[int, str]:
        code = main(["train", "recipe.yaml", *overrides])
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("volley: ")]
        assert "Traceback" not in captured.err
        assert len(lines) == 1, captured.err
        assert not Path("runs").exists(), "the refused run wrote files"
        return code, lines[0]

    return refuse

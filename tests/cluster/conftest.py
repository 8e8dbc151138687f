"""Fixtures of the whole runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from volley.cluster.cli.demo import make_model, write_problems
from volley.cluster.cli.main import main


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model, problems, and room for runs/."""
    root = tmp_path_factory.mktemp("workspace")
    make_model(root / "model", seed=0)
    write_problems(root / "data", seed=0)
    return root


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Of `volley train recipe.yaml` with overrides: the exit code and the one sentence; nothing is written."""

    def refuse(*overrides: str) -> tuple[int, str]:
        code = main(["train", "recipe.yaml", *overrides])
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("volley: ")]
        assert "Traceback" not in captured.err
        assert len(lines) == 1, captured.err
        assert not Path("runs").exists(), "something was written"
        return code, lines[0]

    return refuse

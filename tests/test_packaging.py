"""The wheel and the source distribution: what they contain, and that an installed wheel shares no name with other code.

The code lives in four directories at the top of the repository, and `volley/` links to them. A wheel must contain them
as `volley.*` only: PyPI has a package named `cluster`, and users have files named `rewards.py`.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.cluster.whole_run import recipe

ROOT = Path(__file__).parent.parent
IN_THE_BUILD = ("volley", "rollout", "rewards", "learner", "cluster", "recipes", "deploy")
DATA_FILES = {
    "volley/cluster/report/report.html",
    "volley/cluster/on_ray/grafana/volley.json",
    "volley/recipes/gsm8k-grpo.yaml",
    "volley/recipes/constitution.txt",
}
OTHER_CLUSTER = "cluster==1.4.1"
"""A package on PyPI that installs a top-level module named `cluster`."""


def build(source: Path, kind: str, out: Path) -> Path:
    """Build a `wheel` or an `sdist` with the project's own build backend, without network access."""
    out.mkdir(parents=True, exist_ok=True)
    program = f"import setuptools.build_meta as backend; print(backend.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, so that a stale build folder cannot add modules to the wheel."""
    copy = tmp_path_factory.mktemp("source") / "volley"
    for name in IN_THE_BUILD:
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, "wheel", tmp_path_factory.mktemp("wheel"))


def contents(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_contains_volley_and_nothing_else(wheel: Path) -> None:
    names = contents(wheel)
    assert {name.split("/")[0] for name in names} == {"volley", f"{wheel.name.split('-py3')[0]}.dist-info"}
    modules = {
        f"volley/{path.relative_to(ROOT)}"
        for package in ("rollout", "rewards", "learner", "cluster")
        for path in (ROOT / package).rglob("*.py")
    }
    recipes = {f"volley/recipes/{path.name}" for path in (ROOT / "recipes").iterdir()}
    assert (modules | recipes | DATA_FILES | {"volley/__init__.py", "volley/__main__.py"}) - names == set()


def test_a_source_distribution_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    archive = build(source, "sdist", tmp_path)
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    assert contents(build(unpacked, "wheel", tmp_path / "wheel")) == contents(wheel)


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)


def pip(python: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "pip", "--python", python, *arguments, cwd=cwd)


@pytest.mark.faults
def test_an_installed_wheel_does_not_clash_with_other_modules(wheel: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A clean environment that also has PyPI's `cluster`, and a directory whose files have our directories' names."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    assert pip(python, "install", "-q", "--no-deps", wheel, cwd=tmp_path).returncode == 0
    other = pip(python, "install", "-q", "--no-deps", OTHER_CLUSTER, cwd=tmp_path)
    if other.returncode != 0:
        pytest.skip(f"pip could not install {OTHER_CLUSTER}; is a package index reachable? {other.stderr[-200:]}")
    # The remaining dependencies come from the environment of the tests.
    site_packages = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies))

    workspace = tmp_path / "workspace"
    (workspace / "data").mkdir(parents=True)
    for name in ("train", "test"):
        rows = "".join(f'{{"prompt": "{name} {i}+1=", "answer": "{i + 1}"}}\n' for i in range(32))
        (workspace / "data" / f"{name}.jsonl").write_text(rows)
    (workspace / "model").symlink_to(tiny_model)
    path = recipe(workspace, "clash", rewards=[{"name": "math"}])
    for name in ("cluster", "rewards", "learner", "rollout"):
        (workspace / f"{name}.py").write_text("raise RuntimeError('a file of the user was imported')\n")

    def check(*command: object) -> None:
        done = run(*command, "train", path.name, "--dry-run", cwd=workspace)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]

    check(python.with_name("volley"))
    verdict = "from volley.rewards.math import verify; import volley; print(verify('Answer: 4', '4'), volley.__file__)"
    done = run(python, "-c", verdict, cwd=workspace)
    assert (done.returncode, done.stdout.split()) == (0, ["True", str(site_packages / "volley" / "__init__.py")])
    done = run(python, "-c", "import cluster; print(cluster.HierarchicalClustering, cluster.__file__)", cwd=tmp_path)
    assert done.returncode == 0
    assert str(site_packages / "cluster") in done.stdout

    assert pip(python, "uninstall", "-q", "-y", "cluster", cwd=tmp_path).returncode == 0
    check(python, "-m", "volley")
    assert run(python, "-c", "import cluster", cwd=tmp_path).returncode != 0

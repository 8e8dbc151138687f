"""The Dockerfiles: pinned, not root, no secrets, and every file that they use exists and is in the build context."""

import fnmatch
import re
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY, documents, pods

ROOT = DEPLOY.parent
DOCKER = DEPLOY / "docker"
NAMES = ["Dockerfile.cpu", "Dockerfile.gpu"]


def _instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, arguments), comments dropped and continued lines joined."""
    lines = [line for line in (DOCKER / name).read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def _arguments(name: str, instruction: str) -> list[str]:
    return [arguments for found, arguments in _instructions(name) if found == instruction]


@pytest.mark.parametrize("name", NAMES)
def test_base_is_one_exact_version(name: str) -> None:
    (base,) = _arguments(name, "FROM")
    assert re.fullmatch(r"[a-z/]+:\d[\w.-]+", base)
    assert "latest" not in base


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_as_the_user_of_the_pods(name: str) -> None:
    users = _arguments(name, "USER")
    (pod,) = {pod["spec"]["securityContext"]["runAsUser"] for pod in pods(documents("rayjob.yaml")[0]).values()}
    assert users == [f"{pod}:{pod}"]
    # Nothing is installed or copied after it, so the code belongs to root and a run cannot change it.
    after = [found for found, _ in _instructions(name)][[found for found, _ in _instructions(name)].index("USER") :]
    assert not {"RUN", "COPY", "ADD"} & set(after)


@pytest.mark.parametrize("name", NAMES)
def test_no_secrets_and_no_registries(name: str) -> None:
    text = (DOCKER / name).read_text()
    assert not re.search(r"https?://", text)
    assert not re.search(r"(?i)(token|password|api_?key)\s*=", text)
    assert "ARG" not in [found for found, _ in _instructions(name)]  # build arguments are kept in the image's history
    for command in _arguments(name, "RUN"):
        if "pip install" in command:
            assert "--mount=type=secret,id=pip-conf,target=/etc/pip.conf" in command
            assert "--no-cache-dir" in command


@pytest.mark.parametrize("name", NAMES)
def test_only_pinned_requirements_are_installed(name: str) -> None:
    installs = [command.partition("pip install")[2] for command in _arguments(name, "RUN") if "pip install" in command]
    assert len(installs) == 2
    for command in installs:
        words = command.split()
        options_with_value = {"-r", "-c", "-e"}
        values = {words[i + 1] for i, word in enumerate(words) if word in options_with_value}
        assert [word for word in words if not word.startswith("-") and word not in values] == []
        for value in values - {"."}:
            assert (ROOT / value).is_file()
            for line in (ROOT / value).read_text().splitlines():
                assert not line or re.match(r"#|-[rc] |[\w.\[\]-]+==", line)


@pytest.mark.parametrize("name", NAMES)
def test_the_context_contains_the_code_and_nothing_else(name: str) -> None:
    lines = (DOCKER / f"{name}.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    for path in allowed:
        assert (ROOT / path).exists()
    # `volley/` contains links to directories at the top, which must be copied with it.
    linked = {path.readlink().name for path in (ROOT / "volley").iterdir() if path.is_symlink()}
    assert {"rollout", "learner", "rewards", "cluster"} <= linked
    assert {"volley", *linked, "requirements", "pyproject.toml"} <= allowed
    for private in (".git", ".venv", "runs", "tests", ".env"):
        assert not any(fnmatch.fnmatch(private, rule) for rule in allowed)
    # Rules after the list may only exclude.
    assert not any(rule.startswith("!") for rule in rules[1 + len(allowed) :])


def test_files_of_the_package_metadata_are_in_the_context() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = (DOCKER / "Dockerfile.cpu.dockerignore").read_text().split()
    for path in (project["readme"], *project["license-files"]):
        assert f"!{path}" in allowed


def test_both_images_have_the_same_context() -> None:
    first, second = ((DOCKER / f"{name}.dockerignore").read_text() for name in NAMES)
    assert first == second


def test_the_pods_use_the_image_that_the_readme_builds() -> None:
    images = {c["image"] for pod in pods(documents("rayjob.yaml")[0]).values() for c in pod["spec"]["containers"]}
    (image,) = images
    assert f"-t {image} " in (DEPLOY / "README.md").read_text()
    assert f"-t {image} " in (Path(DOCKER) / "Dockerfile.gpu").read_text()

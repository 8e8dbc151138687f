"""Checkpoints: committed means readable.

A checkpoint is written under a temporary name. Every file is hashed and synced to disk, and the manifest is written
last. Then the directory gets its name, and `LATEST` points to it. A checkpoint without a manifest, or with a file that
does not match it, is set aside as `step-000050.torn` with a notice, and the one before is used. A resume never silently
starts from scratch.

    runs/NAME/checkpoints/step-000050/{manifest.json, run.json, learner/...}    runs/NAME/checkpoints/LATEST

Between two pushes of an iterative run it also holds served/: the learner's state that the engines serve.
"""

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volley.rollout.errors import CheckpointError

MANIFEST = "manifest.json"
RUN_STATE = "run.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint."""

    directory: Path
    step: int
    state: dict[str, Any]
    """As it was given to `write`."""

    @property
    def learner(self) -> Path:
        return self.directory / "learner"

    @property
    def served(self) -> Path:
        """Exists only if the engines' weights were neither the learner's nor the initial ones."""
        return self.directory / "served"


async def write(
    root: Path,
    step: int,
    state: dict[str, Any],
    save_learner: Callable[[Path], Awaitable[None]],
    keep: int,
    *,
    served: Path | None = None,
    run: Callable[..., Awaitable[Any]] = asyncio.to_thread,
) -> Path:
    """Commit a checkpoint of `step` below `root` (runs/NAME/checkpoints), and delete all but the `keep` newest.

    served: the state of a learner to store as well. run: runs the file work in a thread. `Writer.run` also keeps it in
    order with other files of the run.
    """
    temporary = root / f".writing-{step:06d}"
    await run(_make_room, root)
    await save_learner(temporary / "learner")
    return Path(await run(_commit, root, step, state, keep, served))


def _make_room(root: Path) -> None:
    """Delete what interrupted writes left."""
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob(".writing-*"):
        shutil.rmtree(stale)


def _commit(root: Path, step: int, state: dict[str, Any], keep: int, served: Path | None) -> Path:
    """Complete the temporary directory, sync it, and give it its name."""
    temporary, final = root / f".writing-{step:06d}", root / f"step-{step:06d}"
    if served is not None:
        copy(served, temporary / "served")
    (temporary / RUN_STATE).write_text(json.dumps({"step": step, **state}, indent=1))
    files = {str(p.relative_to(temporary)): _fingerprint(p) for p in sorted(temporary.rglob("*")) if p.is_file()}
    _write_synced(temporary / MANIFEST, json.dumps({"step": step, "files": files}, indent=1))
    for directory in [temporary, *(p for p in temporary.rglob("*") if p.is_dir())]:
        _sync(directory)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(root)
    _write_synced(root / "LATEST.new", final.name)
    (root / "LATEST.new").rename(root / "LATEST")
    _sync(root)
    for old in _committed(root)[keep:]:
        shutil.rmtree(old)
    return final


def latest(root: Path, notice: Callable[[str], None]) -> Checkpoint:
    """The newest checkpoint that passes its manifest. Raises `CheckpointError` when there is none."""
    candidates = _committed(root)
    if not candidates:
        raise CheckpointError(f"there is no checkpoint in '{root}' to resume from; start the run without --resume.")
    for directory in candidates:
        problem = _verify(directory)
        if not problem:
            state = json.loads((directory / RUN_STATE).read_text())
            return Checkpoint(directory, state.pop("step"), state)
        aside = directory.with_name(directory.name + ".torn")
        if aside.exists():
            shutil.rmtree(aside)
        directory.rename(aside)
        notice(f"checkpoint {directory.name} is not readable ({problem}); set aside as {aside.name}")
    raise CheckpointError(
        f"no checkpoint in '{root}' is readable; all were set aside as *.torn, so the run cannot be resumed. Start a "
        "new run under another name."
    )


def copy(source: Path, target: Path) -> None:
    """Replace `target` by a copy of `source`, whose files must never change: they are hard links where possible."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _committed(root: Path) -> list[Path]:
    """Named checkpoints, newest first."""
    return sorted((p for p in root.glob("step-*") if p.name[5:].isdigit()), reverse=True)


def _verify(directory: Path) -> str:
    """What is wrong with a checkpoint, "" if it is complete."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        files = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return "no readable manifest"
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} of {expected['bytes']} bytes"
        if _fingerprint(path) != expected:
            return f"{name} does not match its checksum"
    return ""


def _fingerprint(path: Path) -> dict[str, Any]:
    """Size and sha256, after the file is safely on disk."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest}


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

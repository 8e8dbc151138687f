"""Committed means readable: every way to tear a checkpoint is noticed, and the one before it is used."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from volley.cluster.storage import checkpoint
from volley.rollout.errors import CheckpointError


async def save_learner(directory: Path) -> None:
    (directory / "state").mkdir(parents=True)
    (directory / "state" / "weights.bin").write_bytes(bytes(range(256)) * 100)


def commit(root: Path, step: int, keep: int = 3) -> Path:
    return asyncio.run(checkpoint.write(root, step, {"weight_version": step}, save_learner, keep))


def test_a_written_checkpoint_is_found(tmp_path: Path) -> None:
    commit(tmp_path, 5)
    directory = commit(tmp_path, 10)
    found = checkpoint.latest(tmp_path, pytest.fail)
    assert (found.directory, found.step, found.state) == (directory, 10, {"weight_version": 10})
    assert (found.learner / "state" / "weights.bin").stat().st_size == 25600
    assert (tmp_path / "LATEST").read_text() == "step-000010"


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        commit(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-000004", "step-000005"]


def flip_a_bit(directory: Path) -> None:
    path = directory / "learner" / "state" / "weights.bin"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def cut_short(directory: Path) -> None:
    path = directory / "learner" / "state" / "weights.bin"
    path.write_bytes(path.read_bytes()[:-1])


TEARS: list[Callable[[Path], None]] = [
    flip_a_bit,
    cut_short,
    lambda directory: (directory / "learner" / "state" / "weights.bin").unlink(),
    lambda directory: (directory / "manifest.json").unlink(),
    lambda directory: (directory / "manifest.json").write_text("{"),
    lambda directory: (directory / "run.json").write_text("{}"),
    lambda directory: shutil.rmtree(directory / "learner"),
]


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_set_aside_and_the_one_before_is_used(
    tmp_path: Path, tear: Callable[[Path], None]
) -> None:
    commit(tmp_path, 5)
    tear(commit(tmp_path, 10))
    notices: list[str] = []
    assert checkpoint.latest(tmp_path, notices.append).step == 5
    assert len(notices) == 1
    assert "step-000010" in notices[0]
    assert (tmp_path / "step-000010.torn").is_dir()


def test_never_a_silent_fresh_start(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        checkpoint.latest(tmp_path, pytest.fail)
    cut_short(commit(tmp_path, 5))
    with pytest.raises(CheckpointError, match=r"no checkpoint .* is readable"):
        checkpoint.latest(tmp_path, lambda notice: None)


def test_a_crash_while_writing_leaves_the_last_one(tmp_path: Path) -> None:
    commit(tmp_path, 5)

    async def crash(directory: Path) -> None:
        await save_learner(directory)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        asyncio.run(checkpoint.write(tmp_path, 10, {}, crash, 3))
    assert checkpoint.latest(tmp_path, pytest.fail).step == 5
    commit(tmp_path, 15)
    assert not list(tmp_path.glob(".writing-*"))

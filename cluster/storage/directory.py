"""One run, one directory: `runs/NAME` with its lock, its recipe, and checks that protect earlier runs."""

import fcntl
import os
from pathlib import Path
from typing import IO

from volley.cluster.recipe.config import RUNS, Recipe, dump_recipe
from volley.rollout.errors import CheckpointError, ConfigError

RECIPE = "recipe.yaml"


def find_run(name: str) -> Path:
    """The directory of a run, given its name below runs/ or its path."""
    path = Path(name)
    return path if path.is_dir() else RUNS / name


class RunDirectory:
    """Locks `runs/NAME` for this process, from `open` until `close` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def served(self) -> Path:
        """The learner's state at the last push, in an iterative run."""
        return self.path / "served"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def samples(self) -> list[Path]:
        """The saved rollouts: one file per step, in order."""
        return sorted(self.rollouts.glob("step-*[0-9].parquet"))

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def has_checkpoint(self) -> bool:
        return (self.checkpoints / "LATEST").exists()

    def check(self, resume: bool, restart: bool = False) -> None:
        """Refuse to overwrite a run, or to resume without a checkpoint. Changes nothing.

        restart: a run without any checkpoint may be overwritten.
        """
        started = (self.path / RECIPE).exists() and not (restart and not self.has_checkpoint)
        if started and not resume:
            raise ConfigError(
                f"the run directory '{self.path}' already holds a run; add --resume to continue it, or give this one "
                "another name (name=...)."
            )
        if resume and not self.has_checkpoint:
            what = "holds no checkpoint" if started else "does not exist"
            raise CheckpointError(
                f"--resume: the run '{self.path}' {what}, so there is nothing to resume; start it without --resume"
                + (f" after removing '{self.path}'." if started else ".")
            )

    def open(self, recipe: Recipe) -> None:
        """Create the directory, take its lock and write the resolved recipe into it."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = (self.path / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise ConfigError(
                f"the run directory '{self.path}' is in use by process {owner or '?'}; wait for it, or give this run "
                "another name."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock
        self.rollouts.mkdir(exist_ok=True)
        (self.path / RECIPE).write_text(dump_recipe(recipe))

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

"""A recipe with `stages:`: one run after another, each of which starts from the model of the one before.

    name: support
    model: Qwen/Qwen2.5-0.5B-Instruct
    learner: {dtype: bf16}
    stages:
      - {name: kto, steps: 200, data: {train: labels.jsonl}, loss: kto}
      - {name: dpo, steps: 50, data: {train: pairs.jsonl}, loss: dpo}

A stage is the recipe without `stages`, with the stage's own keys over it: sections are merged key by key, but data,
loss, signal and rewards are replaced as a whole. Its run is NAME-STAGE. Each runs in a process of its own, so that
nothing of one is left in memory for the next; a stage that is done is not run again by `--resume`.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volley.rollout.errors import ConfigError

REPLACED = ("data", "loss", "signal", "rewards", "model", "name")
DONE = "model"


def stage_names(content: Mapping[str, Any]) -> list[str]:
    """Of a recipe's stages, [] where it has none. Raises `ConfigError`."""
    stages = content.get("stages")
    if stages is None:
        return []
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise ConfigError("stages must be a list of at least one stage such as {name: sft, loss: sft, ...}.")
    names = [stage.get("name") for stage in stages]
    for name in names:
        if not isinstance(name, str) or not name:
            raise ConfigError("stages: every stage needs a name; its run is called after the recipe and the stage.")
        if names.count(name) > 1:
            raise ConfigError(f"stages: '{name}' stands there twice; give one of them another name.")
    return [str(name) for name in names]


def stage_of(content: Mapping[str, Any], name: str, runs: Path) -> dict[str, Any]:
    """The plain recipe of one stage. runs: the directory of all runs."""
    names = stage_names(content)
    if name not in names:
        raise ConfigError(f"stage is '{name}'; this recipe has {', '.join(names) or 'no stages'}.")
    index = names.index(name)
    base = {key: value for key, value in content.items() if key != "stages"}
    if index:
        base["model"] = str(runs / f"{base.get('name')}-{names[index - 1]}" / DONE)
    merged = dict(base)
    for key, value in content["stages"][index].items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict) and key not in REPLACED
        merged[key] = {**base[key], **value} if both else value
    return {**merged, "name": f"{base.get('name')}-{name}"}


def train_all(names: Sequence[str], run: str, arguments: Sequence[str], resume: bool, runs: Path) -> int:
    """Train the stages in turn by `volley train *arguments stage=NAME`; the exit code of the first that fails. run: the
    recipe's name."""
    for number, name in enumerate(names, 1):
        if resume and (runs / f"{run}-{name}" / DONE).exists():
            print(f"stage {number} of {len(names)}: {name} is done", flush=True)
            continue
        print(f"stage {number} of {len(names)}: {name}", flush=True)
        auto = ["--auto-resume"] if resume else []
        command = [sys.executable, "-P", "-m", "volley", "train", *arguments, f"stage={name}", *auto]
        code = subprocess.call(command)
        if code:
            return code
    return 0

"""A recipe with `stages:`: runs one after another, each starting from the model of the previous one.

    name: support
    model: Qwen/Qwen2.5-0.5B-Instruct
    learner: {dtype: bf16}
    stages:
      - {name: kto, steps: 200, data: {train: labels.jsonl}, loss: kto}
      - {name: dpo, steps: 50, data: {train: pairs.jsonl}, loss: dpo}

A stage is the recipe without `stages`, overridden by the stage's own keys: sections are merged key by key, but data,
loss, signal and rewards are replaced as a whole. Its run is NAME-STAGE. Each stage runs in its own process, so that it
leaves no memory in use. `--resume` skips finished stages.
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
    """The names of a recipe's stages, [] if it has none. Raises `ConfigError`."""
    stages = content.get("stages")
    if stages is None:
        return []
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise ConfigError("stages must be a list of at least one stage such as {name: sft, loss: sft, ...}.")
    names = [stage.get("name") for stage in stages]
    for name in names:
        if not isinstance(name, str) or not name:
            raise ConfigError("stages: every stage needs a name; its run is named RECIPE-STAGE.")
        if names.count(name) > 1:
            raise ConfigError(f"stages: duplicate stage name '{name}'; rename one of them.")
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
    """Train the stages one after another with `volley train *arguments stage=NAME`.

    run: the recipe's name. Returns the exit code of the first stage that fails, or 0.
    """
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

"""The shipped GSM8K recipe on the real files, with a tiny model whose tokenizer can spell the text."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from volley.cluster.cli.demo import make_model

RECIPE = Path(__file__).parents[3] / "recipes" / "gsm8k-grpo.yaml"


@pytest.mark.parametrize("staleness", [pytest.param(0, marks=pytest.mark.faults), 1])
def test_the_recipe_trains_and_loses_nothing(tmp_path: Path, gsm8k: Path, char_tokenizer: Any, staleness: int) -> None:
    make_model(tmp_path / "model", 0, char_tokenizer, max_position_embeddings=1200)
    overrides = {
        "model": tmp_path / "model",
        "steps": 20,
        "groups_per_step": 4,
        "max_staleness": staleness,
        "eval_every": 10,
        "save_every": 0,
        "data.train": gsm8k / "train.jsonl",
        "data.test": gsm8k / "test.jsonl",
        "data.as_chat": "false",
        "data.system": '""',
        "data.max_prompt_tokens": 700,
        "learner.dtype": "fp32",  # what a CPU is sure to be quick in
        "rollout.max_tokens": 16,
        "rollout.group_size": 4,
        "rollout.max_replacements": 1,
        "rollout.enforce_eager": "true",
        "eval.max_prompts": 8,
    }
    done = subprocess.run(
        [Path(sys.executable).with_name("volley"), "train", str(RECIPE), *(f"{k}={v}" for k, v in overrides.items())],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    run = tmp_path / "runs" / "gsm8k-grpo"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 21))
    for row in rows:
        dropped = sum(number for name, number in row.items() if name.startswith("dropped/"))
        assert row["issued"] == row["trained"] + row["queued"] + row["in_flight"] + dropped
        assert row["staleness_max"] <= staleness
        assert row["unscorable"] == 0
    # A model that knows nothing gets no group with a signal, so every step used up its replacements.
    assert rows[-1]["dropped/tied"] >= 20

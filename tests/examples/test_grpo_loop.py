"""The single-file example trains: two steps on a tiny model."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parents[2] / "examples"
# As a researcher would change it: a random model gives no right answer, so reward digits instead.
PROGRAM = """
import asyncio, json, sys
import grpo_loop
from volley.rollout.types import Score

def score(prompt, completion):
    return Score(sum(c.isdigit() for c in completion.text) / max(1, len(completion.text)), {})

async def main():
    async for metrics in grpo_loop.train(grpo_loop.arguments()):
        print("METRICS", json.dumps(metrics), flush=True)

grpo_loop.score = score
asyncio.run(main())
"""


@pytest.mark.faults
def test_two_steps_change_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"{i}+1=?", "answer": str(i + 1)}) + "\n" for i in range(10, 40)]
    (tmp_path / "train.jsonl").write_text("".join(rows))
    options = ["--model", str(tiny_model), "--data", "train.jsonl", "--steps", "2", "--groups", "4", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n{PROGRAM}", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.removeprefix("METRICS ") for line in done.stdout.splitlines() if line.startswith("METRICS ")]
    metrics = [json.loads(line) for line in lines]
    assert [each["step"] for each in metrics] == [1, 2]
    assert all(math.isfinite(value) for each in metrics for value in each.values())
    # The second step samples with the new weights: learner and engine agree on the log-probs of fresh samples.
    assert all(0 < each["logprob_mismatch_mean"] < 1e-3 for each in metrics)
    start, end = load_file(tiny_model / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert start.keys() == end.keys()
    assert any(not torch.equal(start[name], end[name]) for name in start)

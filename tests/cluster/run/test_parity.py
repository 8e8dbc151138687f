"""Learner and vLLM agree after many pushes, tied and untied, under every way the weights are kept."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "parity.py"


@pytest.mark.parametrize(
    ("arguments", "bound"),
    [(["--dtype", "bf16", "--zero-stage", "2"], 0.01), (["--dtype", "fp32", "--untied", "--zero-stage", "3"], 1e-4)],
    ids=["bf16 tied ZeRO-2", "fp32 untied ZeRO-3"],
)
def test_logprobs_agree_after_every_push(arguments: list[str], bound: float) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["pushes"]) == 10
    assert result["worst_mean"] < bound
    # The weights that were pushed were not the old ones: the policy has moved much further than that.
    assert result["pushes"][-1]["moved"] > 0.2

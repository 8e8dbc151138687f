"""Our losses against TRL's trainers, in TRL's own venv, which is not part of the setup: without it this is skipped, and
`benchmarks/RESULTS.md` has the figures of the last time."""

import subprocess
import sys
from pathlib import Path

import pytest

from volley.learner.losses import LOSSES

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.faults


@pytest.mark.skipif(
    not (ROOT / ".venv-trl" / "bin" / "python").exists(),
    reason="no .venv-trl; benchmarks/trl_losses.py makes it, with TRL from the package index",
)
def test_losses_equal_those_of_trl_or_differ_as_said() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "trl_losses.py")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    equal = {line.split(" | ")[0].strip("| ") for line in done.stdout.splitlines() if " | equal | " in line}
    # Which of them are left out, and why, stands at the head of the benchmark.
    assert equal == LOSSES.keys() - {"reinforce_pp", "ppo"}, "not compared"

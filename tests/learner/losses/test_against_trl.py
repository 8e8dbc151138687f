"""Our losses against TRL's trainers.

They need TRL's own venv, which is not part of the setup. Without it this test is skipped; `benchmarks/RESULTS.md` has
the results of the last run.
"""

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
def test_losses_equal_those_of_trl_or_differ_as_documented() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "trl_losses.py")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    equal = {line.split(" | ")[0].strip("| ") for line in done.stdout.splitlines() if " | equal | " in line}
    # The head of the benchmark says which are left out, and why.
    assert equal == LOSSES.keys() - {"reinforce_pp", "ppo"}, "not compared"

"""Correct against incorrect solutions of real models: what is learned from some questions holds for others."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "preference.py"


@pytest.mark.faults
def test_held_out_accuracy_rises_above_the_start(gsm8k: Path, tmp_path: Path) -> None:
    small = ["--steps", "40", "--warm-up", "30", "--max-characters", "400", "--only", "dpo", "kto"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "gsm8k", *small, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = re.findall(r"^(dpo|kto) +\S+ +(\S+) -> (\S+)", done.stdout, re.MULTILINE)
    assert [name for name, _, _ in found] == ["dpo", "kto"], done.stdout
    for name, start, end in found:
        assert float(end) > float(start), f"{name}: {start} -> {end}"

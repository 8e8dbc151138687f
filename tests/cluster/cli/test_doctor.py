"""Tests of `volley doctor` on this machine and of its output."""

import asyncio
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from volley.cluster.cli.doctor import Check, print_checks, run_checks
from volley.cluster.launch.local import LocalLauncher


def test_no_check_fails_on_a_machine_that_runs_the_tests() -> None:
    checks = run_checks()
    failed = [check for check in checks if check.state == "fail"]
    assert not failed
    names = {check.name for check in checks}
    assert {"Python", "C++ compiler", "torch", "vLLM", "import vllm", "import deepspeed", "cores", "memory"} <= names
    assert all(check.found for check in checks)


def test_failed_checks_print_a_fix(capsys: pytest.CaptureFixture[str]) -> None:
    checks = [Check("torch", "ok", "2.13.0"), Check("vLLM", "fail", "not installed", "run make setup")]
    assert print_checks(checks) == 1
    text = capsys.readouterr().out
    assert "-> run make setup" in text
    assert "1 of 2 checks failed" in text
    assert print_checks(checks[:1]) == 0


@pytest.mark.parametrize(("instructions", "found"), [("avx2", "['learner.dtype=fp32']"), ("avx512", "[]")])
def test_demo_uses_fp32_where_bf16_is_slow(instructions: str, found: str) -> None:
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": instructions, "CUDA_VISIBLE_DEVICES": ""}
    code = "import torch; from volley.cluster.cli.demo import fast_dtype; "
    code += "print(torch.backends.cpu.get_cpu_capability(), fast_dtype())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    capability, changes = done.stdout.split(" ", 1)
    if capability.lower() != instructions:
        pytest.skip(f"this processor has no {instructions} that torch can use: {capability}")
    assert changes.strip() == found


@pytest.mark.parametrize(
    ("dtype", "is_slow", "warns"), [("bf16", True, True), ("bf16", False, False), ("fp32", True, False)]
)
def test_run_warns_that_bf16_is_slow(dtype: str, is_slow: bool, warns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volley.cluster.launch.local.is_slow_in_bf16", lambda: is_slow)
    parts = SimpleNamespace(recipe=SimpleNamespace(learner=SimpleNamespace(dtype=dtype)))
    said: list[str] = []
    asyncio.run(LocalLauncher(cast(Any, parts), said.append).prepare())
    assert [("learner.dtype: fp32" in line) for line in said] == [True] * warns

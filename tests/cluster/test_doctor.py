"""The doctor's findings, on this machine and in print."""

import pytest

from cluster.doctor import Check, print_checks, run_checks


def test_a_machine_that_runs_the_tests_is_fit_to_train() -> None:
    checks = run_checks()
    failed = [check for check in checks if check.state == "fail"]
    assert not failed
    names = {check.name for check in checks}
    assert {"Python", "C++ compiler", "torch", "vLLM", "import vllm", "import deepspeed", "cores", "memory"} <= names
    assert all(check.found for check in checks)


def test_every_finding_says_how_to_mend_it(capsys: pytest.CaptureFixture[str]) -> None:
    checks = [Check("torch", "ok", "2.13.0"), Check("vLLM", "fail", "not installed", "run make setup")]
    assert print_checks(checks) == 1
    text = capsys.readouterr().out
    assert "-> run make setup" in text
    assert "1 of 2 would fail" in text
    assert print_checks(checks[:1]) == 0

"""Rewards that cannot be used are refused before anything starts."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from tests.rewards.sandbox_helpers import within
from tests.rewards.scoring_helpers import QUICK, children_of
from volley.rewards.config import RewardConfig
from volley.rewards.scoring.preflight import check_rewards
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.errors import ConfigError, RewardError

pytestmark = pytest.mark.usefixtures("others")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise KeyError('gone')", "cannot be imported: KeyError: 'gone'"),
        ("import os; os._exit(0)", "the process exited"),
        ("def other(): pass", "there is no 'f'"),
        ("def f(prompt, response): pass", "does not take 'answer'"),
    ],
)
def test_rewards_that_do_not_load_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text + "\n")
    terms = [RewardConfig("math"), RewardConfig(f"{path}:f")]

    async def main() -> None:
        async with Scorer(terms, QUICK):
            pass

    with pytest.raises(RewardError, match=message):
        asyncio.run(main())
    with pytest.raises(RewardError, match=message):
        check_rewards(terms, {"prompt", "answer"})


def test_good_rewards_pass_and_leave_no_process(file: Path) -> None:
    check_rewards([RewardConfig("math"), RewardConfig(f"{file}:column")], {"prompt", "answer", "level"})
    check_rewards([RewardConfig("math"), RewardConfig("length", options={"max_tokens": 5})], {"prompt"})
    assert not within(0, lambda: bool(children_of(os.getpid())))


def test_preflight_reports_the_problem(file: Path) -> None:
    with pytest.raises(RewardError, match=r"requires 'level', .*the columns are 'answer', 'levle', 'prompt'"):
        check_rewards([RewardConfig(f"{file}:column")], {"prompt", "answer", "levle"})
    with pytest.raises(RewardError, match="requires 'max_tokens'"):
        check_rewards([RewardConfig("length")], {"prompt", "answer"})
    with pytest.raises(RewardError, match="did you mean 'math'"):
        check_rewards([RewardConfig("mathh")], {"prompt", "answer"})
    with pytest.raises(ConfigError, match="duplicate label 'math'"):
        check_rewards([RewardConfig("math"), RewardConfig("math")], {"prompt", "answer"})
    with pytest.raises(RewardError, match="is not a plain value"):
        check_rewards([RewardConfig(f"{file}:length", options={"when": object()})], {"prompt"})


def test_a_module_that_hangs_at_import_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hangs.py"
    path.write_text("while True: pass\n")
    started = time.monotonic()
    with pytest.raises(RewardError, match=r"hangs.py:f' hangs at import"):
        check_rewards([RewardConfig(f"{path}:f")], {"prompt"})
    assert time.monotonic() - started < 5
    assert not children_of(os.getpid())

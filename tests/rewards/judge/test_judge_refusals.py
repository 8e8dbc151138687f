"""A judge that cannot be used is refused before the run; one that fails too often ends it."""

import asyncio
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.rewards.judge.judge_helpers import Answer, group, item, options, shown
from volley.rewards.config import RewardConfig
from volley.rewards.judge.fake_endpoint import Endpoint, Reply, closed_port
from volley.rewards.judge.judge import Judge
from volley.rewards.scoring.preflight import check_rewards
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.errors import ConfigError, RewardError


def groups_until_the_end(answer: Answer, num_groups: int, **more: Any) -> int:
    """The number of groups of 8 that were scored; raises the error that ends the run."""

    async def main() -> int:
        async with Endpoint(answer) as endpoint:
            judge = Judge(RewardConfig("judge", options=options(endpoint.url, **more)))
            await judge.start()
            try:
                for number in range(num_groups):
                    await judge.score_group([item(f"{number} {place}") for place in range(8)])
                return num_groups
            finally:
                await judge.close()

    return asyncio.run(main())


def test_too_many_unscorable_judgements_end_the_run() -> None:
    with pytest.raises(RewardError) as raised:
        groups_until_the_end(lambda _: Reply(status=500, body="out of order"), 20)
    assert re.fullmatch(
        r"reward 'judge': 100% of the last 16 judgements of http://127.0.0.1:\d+/v1 are unscorable, more than "
        r"max_unscorable_share \(50%\); the last reason: the endpoint answers with status 500: out of order\.",
        str(raised.value),
    )


def test_some_unscorable_judgements_do_not_end_the_run() -> None:
    def half(request: dict[str, Any]) -> Reply:
        return Reply('{"score": 5}' if int(shown(request).split()[1]) % 2 else "nonsense")

    assert groups_until_the_end(half, 20) == 20
    with pytest.raises(RewardError, match=r"50% of the last 64 .* not a JSON object"):
        groups_until_the_end(half, 20, max_unscorable_share=0.4)
    assert groups_until_the_end(lambda _: Reply("nonsense"), 12, max_unscorable_share=1.0) == 12


def test_a_few_failures_at_the_start_do_not_end_the_run() -> None:
    assert groups_until_the_end(lambda _: Reply("nonsense"), 1) == 1
    first_succeeds = iter(['{"score": 5}'])
    assert groups_until_the_end(lambda _: Reply(next(first_succeeds, "nonsense")), 7) == 7


def test_a_short_run_without_any_judgement_ends_before_the_window_is_full() -> None:
    with pytest.raises(RewardError, match=r"100% of the last 16 .* not a JSON object"):
        groups_until_the_end(lambda _: Reply("nonsense"), 2)


def test_no_call_is_left_after_the_end_of_a_run() -> None:
    async def main() -> int:
        async with Endpoint(lambda _: Reply("nonsense", delay_s=0.01)) as endpoint:
            terms = [RewardConfig("judge", options=options(endpoint.url, max_in_flight=4))]
            with pytest.raises(RewardError):
                async with Scorer(terms) as scorer:
                    await scorer.score_group(*group([str(n) for n in range(200)]))
            return len(asyncio.all_tasks() - {asyncio.current_task()}) - endpoint_tasks(endpoint)

    assert asyncio.run(main()) <= 0


def endpoint_tasks(endpoint: Endpoint) -> int:
    return sum("web_protocol" in repr(task) for task in asyncio.all_tasks())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"modell": "x"}, "no option 'modell'; did you mean 'model'?"),
        ({"api_key": "sk-secret"}, "no option 'api_key'; did you mean 'api_key_env'?"),
        ({"model": None}, "'model' must be text"),
        ({"retries": "3"}, "'retries' must be an integer"),
        ({"explain": 1}, "'explain' must be true or false"),
        ({"temperature": math.nan}, "'temperature' must be a finite number"),
        ({"extra": ["a"]}, "'extra' must be a mapping"),
        ({"timeout_s": -1}, "timeout_s is -1.0; it must be above 0"),
        ({"mode": "pairs"}, "mode is 'pairs'; it must be one of score, pairwise"),
        ({"max_in_flight": 0}, "max_in_flight is 0; it must be at least 1"),
        ({"opponents": 3}, "opponents is 3; it must be an even number"),
        ({"max_unscorable_share": 1.5}, "must be between 0 and 1"),
        ({"price_per_million_tokens": {"input": 3}}, "{prompt: NUMBER, completion: NUMBER}"),
        ({"principles": "no/such/file.txt"}, "principles 'no/such/file.txt' cannot be read (FileNotFoundError)"),
        ({"endpoint": "http://user:sk-secret@host/v1"}, "must be a plain http address"),
        ({"endpoint": "localhost:8000"}, "must be a plain http address"),
        ({"endpoint": "http://host/v1/chat/completions"}, "must be a plain http address"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(wrong: dict[str, Any], message: str) -> None:
    terms = [RewardConfig("judge", options={**options("http://host:8000/v1"), **wrong})]
    for use in (lambda: Scorer(terms), lambda: check_rewards(terms, {"prompt"}, 8)):
        with pytest.raises(RewardError) as raised:
            use()
        assert message in str(raised.value)
        assert "sk-secret" not in str(raised.value)


def test_missing_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="requires 'model'"):
        Scorer([RewardConfig("judge", options={"endpoint": "http://host/v1"})])
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(RewardError, match="are empty; write one per line"):
        Scorer([RewardConfig("judge", options=options("http://host/v1", principles=str(tmp_path / "empty.txt")))])
    with pytest.raises(ConfigError, match="does not decide correctness"):
        Scorer([RewardConfig("judge", options=options("http://host/v1"), accuracy=True)])
    with pytest.raises(RewardError, match="did you mean 'judge'"):
        Scorer([RewardConfig("juge")])


def test_groups_of_one_are_refused() -> None:
    terms = [RewardConfig("judge", options=options("http://host:8000/v1", mode="pairwise"))]
    with pytest.raises(RewardError, match=r"rollout.group_size is 1; set it to at least 2, or use mode: score"):
        check_rewards(terms, {"prompt"}, 1)


def test_an_endpoint_that_is_down_is_reported_before_the_run() -> None:
    started = time.monotonic()
    with pytest.raises(RewardError, match=r"endpoint http://127.0.0.1:\d+/v1 cannot be reached .*; start it, or fix"):
        check_rewards([RewardConfig("judge", options=options(f"http://127.0.0.1:{closed_port()}/v1"))], {"prompt"}, 8)
    assert time.monotonic() - started < 5

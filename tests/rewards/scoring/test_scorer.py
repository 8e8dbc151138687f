"""The scoring service with real processes: scores, failures and limits."""

import asyncio
import math
import os
import pickle
import signal
import time
from pathlib import Path

import pytest

from tests.rewards.sandbox_helpers import is_alive, within
from tests.rewards.scoring_helpers import children_of, completion, prompt, scores
from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.item import Item
from volley.rewards.scoring.process_scorer import ProcessScorer
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.errors import RewardError
from volley.rollout.types import Score

pytestmark = pytest.mark.usefixtures("others")


def test_terms_of_all_kinds(file: Path) -> None:
    terms = [
        RewardConfig("math"),
        RewardConfig("think_format", weight=0.5),
        RewardConfig("length", label="overlong", options={"max_tokens": 3, "cache_tokens": 2}),
        RewardConfig(f"{file}:length"),
        RewardConfig(f"{file}:column"),
    ]
    (score,) = scores(terms, [r"<think>a</think>\boxed{\sqrt{324}}"], level=7)
    assert score.terms == {"math": 1.0, "think_format": 1.0, "overlong": -1.0, "length": 34.0, "column": 7.0}
    assert score.reward == 1.0 + 0.5 - 1.0 + 34.0 + 7.0
    assert (score.accuracy, score.extracted, score.unscorable) == (1.0, r"\sqrt{324}", "")


def test_many_concurrent_items_keep_their_order(file: Path) -> None:
    texts = ["x" * n for n in range(600)]
    assert [score.reward for score in scores([RewardConfig(f"{file}:length")], texts)] == [float(n) for n in range(600)]


def test_a_failure_affects_only_its_own_item(file: Path) -> None:
    reasons = {
        7: ("hang", "reward 'acts': timed out after 1 s"),
        8: ("sleep", "reward 'acts': timed out after 1 s"),
        20: ("exit", "reward 'acts': its process died"),
        21: ("segfault", "reward 'acts': its process died"),
        40: ("eat", "reward 'acts' raised MemoryError: "),
        41: ("none", "reward 'acts' returned None, not a finite number"),
        42: ("nan", "reward 'acts' returned nan, not a finite number"),
        43: ("raise", "reward 'acts' raised ValueError: no"),
    }
    texts = [reasons[n][0] if n in reasons else f"good {n}" for n in range(200)]
    results = scores([RewardConfig("think_format"), RewardConfig(f"{file}:acts")], texts)
    for number, score in enumerate(results):
        if number in reasons:
            assert score.unscorable == reasons[number][1]
            assert math.isnan(score.reward)
            assert math.isnan(score.terms["acts"])
            assert score.terms["think_format"] == 0.0
        else:
            assert (score.reward, score.unscorable) == (0.5, "")


def test_a_hanging_item_blocks_neither_the_loop_nor_other_items(file: Path) -> None:
    async def main() -> tuple[int, bool]:
        ticks = 0
        async with Scorer([RewardConfig(f"{file}:acts")], ScorerConfig(workers=2, timeout_s=3.0)) as scorer:
            hanging = asyncio.ensure_future(scorer.score(prompt(), completion("hang")))
            await asyncio.sleep(0.05)
            for n in range(10):
                assert (await scorer.score(prompt(), completion(f"good {n}"))).reward == 0.5
            others_first = not hanging.done()
            while not hanging.done():
                ticks += 1
                await asyncio.sleep(0.01)
            assert "timed out" in hanging.result().unscorable
        return ticks, others_first

    ticks, others_first = asyncio.run(main())
    assert others_first
    assert ticks > 10


def test_the_time_limit_does_not_count_waiting(file: Path) -> None:
    config = ScorerConfig(workers=1, timeout_s=0.5)
    results = scores([RewardConfig(f"{file}:acts")], ["hang", "hang", "hang", "good"], config)
    assert [bool(score.unscorable) for score in results] == [True, True, True, False]


def test_a_busy_event_loop_does_not_make_finished_items_time_out(file: Path) -> None:
    async def main() -> list[Score]:
        async with Scorer([RewardConfig(f"{file}:length")], ScorerConfig(workers=1, timeout_s=0.3)) as scorer:
            tasks = [asyncio.ensure_future(scorer.score(prompt(), completion("x" * n))) for n in range(40)]
            for _ in range(5):
                await asyncio.sleep(0)
            time.sleep(0.8)  # like training on the event loop's thread
            return list(await asyncio.gather(*tasks))

    assert [score.reward for score in asyncio.run(main())] == [float(n) for n in range(40)]


def test_the_processor_time_limit_holds_while_the_loop_is_blocked_and_cannot_be_ignored(file: Path) -> None:
    async def main() -> tuple[Score, bool]:
        async with Scorer([RewardConfig(f"{file}:ignores")], ScorerConfig(workers=1, timeout_s=1.0)) as scorer:
            (pid,) = children_of(os.getpid())
            os.kill(pid, signal.SIGSTOP)  # resumes when the event loop is blocked
            task = asyncio.ensure_future(scorer.score(prompt(), completion("hang")))
            await asyncio.sleep(0.05)
            os.kill(pid, signal.SIGCONT)
            ended = within(60, lambda: not is_alive(pid))  # blocks the event loop
            return await task, ended

    score, ended = asyncio.run(main())
    assert ended
    assert score.unscorable in ("reward 'ignores': its process died", "reward 'ignores': timed out after 1 s")


def test_a_memory_leak_costs_single_items_not_the_run(file: Path) -> None:
    config = ScorerConfig(workers=1, memory_bytes=300 << 20)
    results = scores([RewardConfig(f"{file}:remembers")], ["x"] * 12, config)
    lost = [score for score in results if score.unscorable]
    assert 1 <= len(lost) <= 4
    assert all("MemoryError" in score.unscorable for score in lost)


def test_output_of_a_reward_does_not_reach_the_socket(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert [score.reward for score in scores([RewardConfig(f"{file}:noisy")], ["a"] * 20)] == [1.0] * 20
    assert capfd.readouterr().out == ""


def test_scoring_processes_do_not_inherit_secrets(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "RAY_AUTH_MODE", "MY_SECRET"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("PLAIN", "seen")
    assert scores([RewardConfig(f"{file}:environment")], ["a"])[0].reward == 1.0


def test_hostile_answers_do_not_affect_good_ones(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    hostile = [
        "9**9**9**9",
        "10^{10^{10}}",
        "(9^{99})^{999}",
        "1000000!",
        "(" * 100_000,
        "{" * 100_000 + "}" * 100_000,
        f"__import__('os').system('touch {mark}')",
        "\x00\x00\x00",
        "\ud800",
        r"(a+b+c+d+e+f)^{99} - (a-b+c-d+e-f)^{98}",
        r"\sqrt{\sqrt{\sqrt{\sqrt{(2+\sqrt{3})^{99}}}}} + e^{e^{9}}",
    ]
    good = r"\boxed{\frac{\sqrt{12}}{2}}"
    texts = [text for each in hostile for text in (f"\\boxed{{{each}}}", good, each)]
    results = scores([RewardConfig("math")], texts, answer=r"\sqrt{3}")
    for text, score in zip(texts, results, strict=True):
        if text == good:
            assert (score.reward, score.unscorable) == (1.0, "")
        else:
            assert score.reward == 0.0 or "timed out" in score.unscorable or "MemoryError" in score.unscorable
    assert not mark.exists()


def test_a_row_that_json_cannot_represent_is_unscorable(file: Path) -> None:
    (score,) = scores([RewardConfig(f"{file}:length"), RewardConfig("think_format")], ["a"], level={1, 2})
    assert "row of the data" in score.unscorable
    assert score.terms["think_format"] == 0.0


def test_a_reward_that_cannot_be_loaded_any_more_ends_the_run_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "fades.py"
    path.write_text("import os\ndef f(prompt, response, answer): os._exit(1)\n")

    async def main() -> None:
        async with Scorer([RewardConfig(f"{path}:f")], ScorerConfig(workers=1, timeout_s=1)) as scorer:
            path.unlink()
            await asyncio.gather(*(scorer.score(prompt(), completion("a")) for _ in range(3)))

    with pytest.raises(RewardError, match=r"fades.py does not exist"):
        asyncio.run(main())


class PickledScorer:
    """An `ItemScorer` that hands every item and score over as a pickle, as a remote one would."""

    def __init__(self, scorer: ProcessScorer) -> None:
        self._scorer = scorer

    async def start(self) -> None:
        await self._scorer.start()

    async def close(self) -> None:
        await self._scorer.close()

    async def score(self, item: Item) -> Score:
        score = await self._scorer.score(pickle.loads(pickle.dumps(item)))
        restored: Score = pickle.loads(pickle.dumps(score))
        assert restored == score
        return restored


def test_plain_terms_can_be_scored_elsewhere(file: Path) -> None:
    """Group terms stay with the caller; the plain terms' items and scores are picklable."""
    plain = [RewardConfig("math", weight=2.0), RewardConfig(f"{file}:column", weight=0.5)]
    terms = [*plain, RewardConfig("length_group")]

    async def main() -> tuple[Score, ...]:
        items = PickledScorer(ProcessScorer(plain, ScorerConfig(workers=1)))
        async with Scorer(terms, items=items) as scorer:
            question = prompt(answer="18", level=3)
            completions = [completion(r"\boxed{18}"), completion(r"\boxed{19}")]
            scores = [await scorer.score(question, each) for each in completions]
            return await scorer.score_group(question, completions, scores)

    scores = asyncio.run(main())
    assert [score.terms for score in scores] == [
        {"math": 1.0, "column": 3.0, "length_group": 0.0},
        {"math": 0.0, "column": 3.0, "length_group": 0.0},
    ]
    assert [score.reward for score in scores] == [3.5, 1.5]

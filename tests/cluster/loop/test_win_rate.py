"""Win rate against counting and simulation, and by a judge; the warning about answers that got too short, and the other
numbers that hold a run against its start."""

import asyncio
import dataclasses
import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.whole_run import recipe, rows, volley
from volley.cluster.loop.buffer import BufferConfig, GroupBuffer
from volley.cluster.loop.evaluate import evaluate, greedy_metrics
from volley.cluster.loop.interfaces import Evaluation, Step
from volley.cluster.loop.loop import LoopParts, train
from volley.cluster.loop.rollout import Rollout
from volley.cluster.loop.win_rate import InitialPolicy, chosen_warning, length_warning, run_warnings, win_rate
from volley.cluster.recipe.config import parse_recipe
from volley.cluster.report.report import write_report
from volley.cluster.run.recorder import RunRecorder
from volley.cluster.storage.directory import RunDirectory
from volley.cluster.storage.metrics import EVALUATIONS, METRICS, read_rows
from volley.cluster.storage.writer import Writer
from volley.learner.losses import LOSSES
from volley.learner.signals.batch import Batch, Update
from volley.rewards.config import RewardConfig
from volley.rewards.judge.fake_endpoint import MODEL, Endpoint, Reply
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.engines.fake import FakeEngine
from volley.rollout.engines.pool import RolloutPool
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup, as_token_ids

NAN = math.nan


def test_ties_count_half_and_the_unscorable_are_left_out() -> None:
    found = win_rate([[1.0], [0.5], [0.0], [NAN], [1.0]], [[0.0], [0.5], [1.0], [1.0], [NAN]])
    assert (found.rate, found.wins, found.ties, found.losses, found.left_out) == (0.5, 1, 1, 1, 2)
    assert win_rate([[2.0], [1.0]], [[1.0], [1.0]]).rate == 0.75


def test_several_answers_are_compared_in_all_pairs() -> None:
    found = win_rate([[1.0, 0.0, NAN]], [[0.0, 0.0, 1.0]])
    assert found.rate == pytest.approx((2 + 0.5 + 2 * 0.5) / 6)
    assert win_rate([], []).rate is NAN
    with pytest.raises(ValueError, match="responses to 1 prompts with initial responses to 2 prompts"):
        win_rate([[1.0]], [[1.0], [0.0]])


@pytest.mark.parametrize(("win", "loss"), [(0.05, 0.02), (0.5, 0.5), (0.9, 0.05), (0.01, 0.0), (0.3, 0.1)])
@pytest.mark.parametrize("number", [20, 200])
def test_the_confidence_interval_has_its_nominal_coverage(win: float, loss: float, number: int) -> None:
    draw = random.Random(number)
    held = 0
    for _ in range(1000):
        outcomes = draw.choices([(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)], [win, loss, 1 - win - loss], k=number)
        found = win_rate([[now] for now, _ in outcomes], [[start] for _, start in outcomes])
        assert 0.0 <= found.low <= found.rate <= found.high <= 1.0
        held += found.low <= 0.5 + (win - loss) / 2 <= found.high
    assert held >= 930


def test_few_prompts_give_a_wide_interval() -> None:
    assert win_rate([[1.0]] * 4, [[0.0]] * 4).low < 0.9
    equal = win_rate([[1.0]] * 4, [[1.0]] * 4)
    assert equal.low < 0.5 < equal.high


def evaluated(rights: list[float], lengths: list[int]) -> dict[str, float]:
    groups = [
        ScoredGroup(
            Prompt(0, 0, "", as_token_ids((1,)), ""),
            (Completion.single((1,) * length, (-1.0,) * length, "", "stop", 0, 0),),
            (Score(right, {}, "", right),),
        )
        for right, length in zip(rights, lengths, strict=True)
    ]
    return greedy_metrics(groups, 4)


LENGTHS = [10, 20, 30, 40] * 50


@pytest.mark.parametrize(
    ("share_right", "shrinks", "warns"),
    [(0.5, 0.5, True), (0.5, 0.98, False), (0.5, 1.5, False), (0.86, 0.5, False), (0.9, 0.5, False), (1.0, 0.5, False)],
)
def test_shorter_responses_with_lower_accuracy_are_reported(share_right: float, shrinks: float, warns: bool) -> None:
    """At the start 45 of the 50 longest answers are right."""
    start = evaluated([float(length < 40 or i < 180) for i, length in enumerate(LENGTHS)], LENGTHS)
    assert start["length_bucket_4/accuracy"] == 0.9
    rights = [float(length < 40 or i < 200 * share_right) for i, length in enumerate(LENGTHS)]
    warning = length_warning(start, evaluated(rights, [round(length * shrinks) for length in LENGTHS]))
    assert bool(warning) == warns
    assert not warns or "(25 to 12 tokens), but accuracy among the longest ones fell from 0.90 to 0.50" in warning


def test_unknown_values_never_warn() -> None:
    known = evaluated([1.0] * 200, LENGTHS)
    shorter = evaluated([0.0] * 200, [5] * 200)
    assert length_warning(known, shorter)
    assert not length_warning({}, shorter)
    assert not length_warning(known, {})
    assert not length_warning(known, shorter | {"length_bucket_4/accuracy": NAN})
    assert not length_warning({**known, "length_bucket_4/accuracy": None}, shorter)


def answers(texts: Sequence[str], rewards: Sequence[float]) -> list[ScoredGroup]:
    """One to each of as many prompts."""
    return [
        ScoredGroup(
            Prompt(i, i, f"question {i}", as_token_ids((i,)), ""),
            (Completion.single((1,) * len(text), (-1.0,) * len(text), text, "stop", 0, 0),),
            (Score(reward, {}),),
        )
        for i, (text, reward) in enumerate(zip(texts, rewards, strict=True))
    ]


def test_a_resumed_run_has_the_responses_of_the_initial_policy(tmp_path: Path) -> None:
    async def compared(step: int, rewards: list[float]) -> dict[str, float]:
        """Each call stands for a new process."""
        async with Scorer([]) as scorer:
            rollout = Rollout(RolloutPool(), scorer, 0)
            return await InitialPolicy(tmp_path / "start.parquet", 4).compare(
                step, answers("abcd"[: len(rewards)], rewards), rollout
            )

    assert asyncio.run(compared(0, [0.0, 0.0, 1.0, NAN])) == {}
    found = asyncio.run(compared(3, [1.0, 1.0, 1.0, 1.0]))
    assert (found["win_rate"], found["win_rate_left_out"]) == (2.5 / 3, 1)
    assert found["win_rate_low"] < 2.5 / 3 < found["win_rate_high"]
    assert "answers_cut_short" not in found, "no verifier tells what is correct"
    assert asyncio.run(compared(6, [1.0, 1.0])) == {}, "other prompts: nothing to compare"


def shorter_wins(request: dict[str, Any]) -> Reply:
    content = request["messages"][-1]["content"]
    if "broken" in content:
        return Reply("no verdict")
    first, second = re.findall(r"<judged_response_\w>\n(.*?)\n</judged_response", content, re.DOTALL)
    return Reply(json.dumps({"reasoning": "counted", "winner": "A" if len(first) < len(second) else "B"}))


CONSTITUTION = Path(__file__).parents[3] / "recipes" / "constitution.txt"


def test_a_comparing_judge_gets_both_responses(tmp_path: Path) -> None:
    async def main() -> tuple[dict[str, float], tuple[float, ...], int]:
        async with Endpoint(shorter_wins) as endpoint:
            options = {"endpoint": endpoint.url, "model": MODEL, "principles": str(CONSTITUTION), "mode": "pairwise"}
            async with Scorer([RewardConfig("judge", options=options | {"retries": 0})]) as scorer:
                rollout, start = Rollout(RolloutPool(), scorer, 0), InitialPolicy(tmp_path / "start.parquet", 4)
                then = answers(["long", "short", "equal", "broken"], [NAN] * 4)
                alone = await scorer.score_group(then[0].prompt, then[0].completions, [Score(0.0, {})])
                asked = len(endpoint.requests)
                await start.compare(0, then, rollout)
                now = answers(["no", "very long", "equal", "x"], [NAN] * 4)
                return await start.compare(5, now, rollout), (alone[0].reward, float(bool(alone[0].unscorable))), asked

    found, (reward, unscorable), asked = asyncio.run(main())
    assert (found["win_rate"], found["win_rate_left_out"]) == (0.5, 1), "a win, a loss, a tie, and one not judged"
    assert math.isnan(reward)
    assert (unscorable, asked) == (0, 0), "one answer alone is nothing to ask a judge about"


@pytest.mark.faults
def test_a_run_reports_its_win_rate_and_shortened_responses(workspace: Path) -> None:
    """Taught to answer with one digit where five characters are right, before a judge who likes it short; evaluated
    without being told when."""
    prompts = [json.loads(line) for line in (workspace / "data" / "train.jsonl").read_text().splitlines()][:64]
    shown = [{"prompt": row["prompt"], "completion": "1"} for row in prompts]
    (workspace / "data" / "short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shown))

    async def trained() -> str:
        async with Endpoint(shorter_wins) as endpoint:
            options = {"endpoint": endpoint.url, "model": MODEL, "principles": str(CONSTITUTION), "mode": "pairwise"}
            path = recipe(
                workspace,
                "cut-short",
                steps=12,
                groups_per_step=16,
                loss={"name": "sft"},
                data={"train": "data/short.jsonl"},
                rewards=[
                    {"name": "long.py:long", "weight": 0.0, "accuracy": True},
                    {"name": "judge", "options": options},
                ],
            )
            (workspace / "long.py").write_text("def long(response, **row):\n    return float(len(response) >= 5)\n")
            return (await asyncio.to_thread(volley, workspace, "train", str(path))).stdout

    said = asyncio.run(trained())
    start, end = rows(workspace, "cut-short", "evaluations.jsonl")
    assert (start["step"], end["step"]) == (0, 12)
    assert "win_rate" not in start
    assert (start["unscorable"], start["reward_mean"]) == (0, None)
    # A model that knows nothing ends an answer early now and then.
    assert start["pass@1"] > 0.75
    assert (end["pass@1"], end["answers_cut_short"]) == (0, 1)
    assert end["win_rate"] > 0.75
    assert all("response_length_ratio" not in row for row in rows(workspace, "cut-short")), "it samples nothing"
    sentence = "accuracy among the longest ones fell from 1.00 to 0.00"
    assert sentence in said
    assert sentence in (workspace / "runs" / "cut-short" / "report.html").read_text()


def test_the_loop_reports_win_rate_and_shortened_responses(tmp_path: Path) -> None:
    """An engine that thinks before it answers under its first weights only, before a judge who likes it short."""
    engine = FakeEngine(lambda ids, number: (range(9), THOUGHT) if engine.version == 0 else (range(2), "no"))
    prompts = [Prompt(i, i, f"question {i}", as_token_ids((i,)), "") for i in range(32)]
    (tmp_path / "rollouts").mkdir()

    async def main() -> None:
        async with Endpoint(shorter_wins) as endpoint:
            options = {"endpoint": endpoint.url, "model": MODEL, "principles": str(CONSTITUTION), "mode": "pairwise"}
            checked = parse_recipe(
                {
                    "name": "x",
                    "model": "x",
                    "data": {"train": "x", "test": "x"},
                    "steps": 4,
                    "eval_every": 2,
                    "groups_per_step": 2,
                    "rollout": {"group_size": 2},
                    "rewards": [
                        {"name": "think_format", "weight": 0.0, "accuracy": True},
                        {"name": "judge", "options": options},
                    ],
                }
            )
            async with Scorer(checked.rewards, checked.scorer) as scorer:
                rollout, learner = Rollout(RolloutPool([engine]), scorer, 0), CountingLearner()
                recorder = RunRecorder(RunDirectory(tmp_path), checked, Writer())
                start = InitialPolicy(tmp_path / "start.parquet", 4)

                class Own:
                    """Publisher, evaluator and checkpointer."""

                    @property
                    def version(self) -> int:
                        return engine.version

                    async def publish(self, groups: Sequence[ScoredGroup]) -> None:
                        await engine.load_weights([], engine.version + 1)

                    async def evaluate(self) -> Evaluation:
                        result = await evaluate(rollout, prompts, checked.eval, 12, ())
                        compared = await start.compare(learner.step, result.greedy, rollout)
                        return Evaluation(result.metrics | compared, result.greedy)

                    async def save(self, step: int) -> None: ...

                source = GroupBuffer(
                    lambda ordinal: prompts[ordinal % 32],
                    lambda prompt: rollout(prompt, checked.rollout.sampling),
                    lambda group: "any",
                    BufferConfig(checked.groups_per_step, 0, 0),
                )
                recorder.collect_from([rollout, source])
                own = Own()
                await recorder.evaluation(0, await own.evaluate())
                parts = LoopParts(source, LOSSES["grpo"](), learner, own, own, own, recorder)
                await train(checked, parts, asyncio.Event())
                await recorder.close()

    asyncio.run(main())
    first, middle, last = read_rows(tmp_path / EVALUATIONS)
    assert "win_rate" not in first
    assert (first["pass@1"], first["unscorable"], first["reward_mean"]) == (1, 0, None)
    for row in (middle, last):
        assert (row["pass@1"], row["win_rate"], row["win_rate_left_out"], row["answers_cut_short"]) == (0, 1, 0, 1)
    sentence = "accuracy among the longest ones fell from 1.00 to 0.00"
    assert sentence in run_warnings(read_rows(tmp_path / METRICS), [first, middle, last], "grpo")[0]
    assert sentence in write_report(tmp_path).read_text()


THOUGHT = "<think>\nlet me see\n</think>\nyes"


class CountingLearner:
    """Learns nothing."""

    step = 0

    async def update(self, batch: Batch) -> Update:
        self.step += 1
        return Update({"loss": 0.0})

    async def refresh_reference(self) -> None: ...


LOGPROBS = [
    ([-1.0] * 20, [-1.0] * 20, ""),
    ([-1.0, *[-1.02] * 19], [-1.0] * 20, ""),
    ([-1.0] * 10 + [-1.3] * 10, [-1.0] * 10 + [-1.5] * 10, "and the rejected fell faster (-1.00 to -1.50); "),
    ([-1.0] * 10 + [-1.3] * 10, [-1.0] * 10 + [-1.2] * 10, "and the rejected fell no faster (-1.00 to -1.20); "),
    ([-1.0] * 10 + [-1.3] * 10, [-2.0] * 10 + [-1.9] * 10, "while the rejected became more likely (-2.00 to -1.90); "),
    ([], [], ""),
    ([-1.0], [-1.0], ""),
]


@pytest.mark.parametrize(("chosen", "rejected", "what"), LOGPROBS)
def test_chosen_responses_that_became_less_likely_are_reported(
    chosen: list[float], rejected: list[float], what: str
) -> None:
    steps = [{"chosen_logprob": a, "rejected_logprob": b} for a, b in zip(chosen, rejected, strict=True)]
    sentence = chosen_warning([*steps, {"step": 99}, {"chosen_logprob": None, "rejected_logprob": None}], "dpo")
    assert bool(sentence) == bool(what)
    assert what in sentence
    assert not what or "less likely (-1.00 to -1.30 nats per token)" in sentence


@pytest.mark.parametrize("loss", [name for name, kind in LOSSES.items() if kind.signal.compares])
def test_advice_never_names_the_loss_in_use(loss: str) -> None:
    steps = [{"chosen_logprob": -step, "rejected_logprob": -2.0 * step} for step in range(9)]
    advice = chosen_warning(steps, loss).rpartition(";")[2]
    assert loss not in advice.split(" take ")[-1]
    assert "lower learner.lr" in advice
    options = re.findall(r"loss\.(\w+)", advice)
    assert options
    assert {*options} <= {field.name for field in dataclasses.fields(LOSSES[loss])}


def test_reference_age_and_length_relative_to_the_first_step(tmp_path: Path) -> None:
    recipe = parse_recipe(
        {"name": "x", "model": "x", "data": {"train": "x"}, "steps": 9, "reference": {"refresh_every": 3}}
    )

    def goes_on(done: int, lengths: list[int]) -> None:
        """Each call stands for a new process."""

        async def record() -> None:
            recorder = RunRecorder(RunDirectory(tmp_path), recipe, Writer(), done)
            for step, length in enumerate(lengths, done + 1):
                await recorder.step(Step(step, 0, 0, answers(["x" * length], [1.0]), Update({"loss": 0.0})))
            await recorder.close()

        asyncio.run(record())

    (tmp_path / "rollouts").mkdir()
    goes_on(0, [4, 6, 4, 8])
    goes_on(4, [2, 4, 4])
    found = read_rows(tmp_path / METRICS)
    # The reference becomes the policy after steps 3 and 6.
    assert [row["reference_age"] for row in found] == [0, 1, 2, 0, 1, 2, 0]
    assert [row["response_length_ratio"] for row in found] == [1, 1.5, 1, 2, 0.5, 1, 1]

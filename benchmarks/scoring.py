"""The cost of scoring during generation, and its scaling with cores: parts of `benchmarks/verifiers.py`.

cores: responses/s of the scorer for distinct formulas that the caller cannot score in its own process, with single
responses and with groups of eight responses to one answer. `IN_FLIGHT` of them are in flight, as with an engine. One
child process and the caller on one core are compared with two children on two cores. For comparison, the same is
measured for `verify` in one and two processes, which shows what the second core is worth: if it is a hyper-thread of
the first one, it is less than a core.

step: the wall time of a step in which a real vLLM engine (the demo's model, 128 tokens per response) samples and every
response is scored when it is finished, through the `Roller` of the loop, compared with the same step without scoring.
Both alternate after a warm-up step. The model's text is noise, so the scorer gets responses of the speed table instead,
of the same length and all different: of ten, eight have integers, one a fraction and one a formula. Other load on the
machine can make a step several times longer, so the fastest step of each kind is printed next to the median.
"""

import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.math.verifier import quick_reward
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.types import Completion, Prompt, Score, as_token_ids

Case = tuple[str, str, bool]  # response, gold answer, whether it is right
GROUP_SIZE = 8
IN_FLIGHT = 256
MAX_TOKENS = 128
"""Approximate length of a response of the speed table."""
CHARACTERS = "".join(map(chr, range(32, 1000)))
"""A large alphabet makes the end token rare among random tokens."""


def formulas(make: Callable[[random.Random], Case], chance: random.Random, number: int, copies: int) -> list[Case]:
    """Cases that need a child process, with `copies` different responses to each reference answer."""
    cases: list[Case] = []
    while len(cases) < number:
        response, answer, is_right = make(chance)
        if quick_reward("", response, answer) is None:
            cases += [(f"Attempt {copy}: {response}", answer, is_right) for copy in range(copies)]
    return cases[:number]


@contextmanager
def pinned(num_cores: int) -> Iterator[None]:
    """Restrict this process and its new children to `num_cores` cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:num_cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


async def scorer_rate(cases: Sequence[Case], num_children: int) -> float:
    """Responses per second of wall time, after a warm-up of the child processes."""
    async with Scorer([RewardConfig("math")], ScorerConfig(workers=num_children)) as scorer:

        async def agreeing(some: Sequence[Case]) -> int:
            turns = asyncio.Semaphore(IN_FLIGHT)

            async def agrees(response: str, answer: str, is_right: bool) -> bool:
                async with turns:
                    prompt = Prompt(0, 0, "", as_token_ids(()), answer)
                    completion = Completion.single((), (), response, "stop", 0, 0)
                    return ((await scorer.score(prompt, completion)).accuracy == 1.0) == is_right

            return sum(await asyncio.gather(*(agrees(*case) for case in some)))

        await agreeing(cases[:200])
        started = time.perf_counter()
        num_agreeing = await agreeing(cases[200:])
        seconds = time.perf_counter() - started
    assert num_agreeing == len(cases) - 200, "a verdict is wrong"
    return (len(cases) - 200) / seconds


def cores(make: Callable[[random.Random], Case], rounds: int, wall_rate: Callable[[list[Case], int], float]) -> None:
    """Print medians. Both variants alternate, so that other load affects them equally."""
    print(f"\n{'answers/s, wall clock':38} {'one':>8} {'two':>8} {'ratio':>7}")
    for kind, copies in (("distinct answers", 1), ("groups of 8", GROUP_SIZE)):
        rates: dict[int, list[float]] = {1: [], 2: []}
        for index in range(rounds):
            for number in (1, 2):
                cases = formulas(make, random.Random(f"{kind} {index} {number}"), 4200, copies)
                with pinned(number):
                    rates[number].append(asyncio.run(scorer_rate(cases, number)))
        _show(f"Scorer, {kind}", rates)
    rates = {1: [], 2: []}
    for index in range(rounds):
        for number in (1, 2):
            chance = random.Random(f"processes {index} {number}")
            rates[number].append(wall_rate([make(chance) for _ in range(4000)], number))
    _show("verify, processes", rates)


def _show(name: str, rates: dict[int, list[float]]) -> None:
    one, two = statistics.median(rates[1]), statistics.median(rates[2])
    print(f"{name:38} {one:8,.0f} {two:8,.0f} {two / one:7.2f}", flush=True)


class Prepared:
    """`volley.cluster.loop.interfaces.GroupScorer` of prepared responses; without a scorer, of nothing."""

    def __init__(self, cases: Sequence[Case], scorer: Scorer | None) -> None:
        self._cases = cases
        self._scorer = scorer
        self._next = 0
        self.num_right = 0

    async def score(self, prompt: Prompt, completion: Completion) -> Score:
        if self._scorer is None:
            return Score(0.0, {})
        response, answer, is_right = self._cases[self._next]
        self._next += 1
        score = await self._scorer.score(replace(prompt, answer=answer), replace(completion, text=response))
        self.num_right += (score.accuracy == 1.0) == is_right
        return score

    async def score_group(
        self, prompt: Prompt, completions: Sequence[Completion], scores: Sequence[Score]
    ) -> tuple[Score, ...]:
        return tuple(scores)

    def metrics(self) -> dict[str, float]:
        return {}


def step(kinds: Sequence[Callable[[random.Random], Case]], rounds: int, num_responses: int) -> None:
    """kinds: functions that create responses, used in turn."""
    from volley.cluster.launch.environment import prepare_environment
    from volley.cluster.recipe.config import parse_recipe

    prepare_environment(parse_recipe({"name": "step", "model": "demo", "data": {"train": "none"}, "steps": 1}))
    asyncio.run(_step(kinds, rounds, num_responses))


async def _step(kinds: Sequence[Callable[[random.Random], Case]], rounds: int, num_responses: int) -> None:
    from transformers import AutoTokenizer

    from volley.cluster.cli.demo import make_model, make_tokenizer
    from volley.cluster.launch.environment import tune_interpreter
    from volley.cluster.loop.rollout import Rollout
    from volley.rollout.config import RolloutConfig
    from volley.rollout.engines.pool import RolloutPool
    from volley.rollout.engines.vllm import EngineSpec, VllmEngine
    from volley.rollout.types import Sampling

    tune_interpreter()
    chance = random.Random("step")
    cases = [kinds[place % len(kinds)](chance) for place in range(num_responses)]
    with tempfile.TemporaryDirectory() as directory:
        make_model(Path(directory), 0, make_tokenizer(CHARACTERS))
        tokenizer = AutoTokenizer.from_pretrained(directory)
        engine = VllmEngine(EngineSpec(directory, tokenizer, RolloutConfig(), "bf16", max_model_len=256))
    pairs = [(chance.randrange(10, 100), chance.randrange(10, 100)) for _ in range(num_responses // GROUP_SIZE)]
    prompts = [
        Prompt(i, i, f"{a}+{b}=?", as_token_ids(tokenizer.encode(f"{a}+{b}=?", add_special_tokens=False)), "")
        for i, (a, b) in enumerate(pairs)
    ]
    sampling = Sampling(GROUP_SIZE, 1.0, 1.0, MAX_TOKENS)

    async def seconds(scorer: Scorer | None) -> float:
        scores = Prepared(cases, scorer)
        rollout = Rollout(RolloutPool([engine]), scores, 0)
        started = time.perf_counter()
        groups = await asyncio.gather(*(rollout(prompt, sampling) for prompt in prompts))
        taken = time.perf_counter() - started
        assert scorer is None or scores.num_right == sum(len(group.completions) for group in groups)
        return taken

    async with Scorer([RewardConfig("math")]) as scorer:
        await seconds(scorer)
        started = time.perf_counter()
        alone = Prepared(cases, scorer)
        blank = Completion.single((), (), "", "stop", 0, 0)
        await asyncio.gather(*(alone.score(prompts[0], blank) for _ in cases))
        print(f"\n{num_responses:,} responses, scoring alone: {time.perf_counter() - started:.2f} s", flush=True)
        ratios: list[float] = []
        fastest = {True: float("inf"), False: float("inf")}
        for index in range(rounds):
            taken: dict[bool, float] = {}
            for is_scored in (True, False) if index % 2 else (False, True):
                taken[is_scored] = await seconds(scorer if is_scored else None)
                fastest[is_scored] = min(fastest[is_scored], taken[is_scored])
            ratios.append(taken[True] / taken[False] - 1)
            print(f"step without scoring {taken[False]:.2f} s, with {taken[True]:.2f} s, {ratios[-1]:+.1%}", flush=True)
    await engine.close()
    spread = f"{min(ratios):+.1%} to {max(ratios):+.1%}; of the fastest steps {fastest[True] / fastest[False] - 1:+.1%}"
    print(f"scoring while the engine generates: {statistics.median(ratios):+.1%} of the step's wall time ({spread})")

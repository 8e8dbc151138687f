"""The service that scores: cheap terms in the caller, everything else in a pool of child processes that can be killed.

    score() -- what is cheap -- all of it? --------------------------------> Rubric.combine
                                    no: waiting -> batch -> child, term by term --^

The clock of an item starts when work on it starts. A child that exceeds it, or dies, is killed with all that it
started, and replaced; only the item that it was working on becomes unscorable, the others of its batch go back to the
front of the queue. Nothing here blocks the event loop but starting a process (milliseconds).
"""

import asyncio
import math
import os
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

from volley.rewards.code import verifier as code
from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.item import Item
from volley.rewards.scoring.child_handle import FEW, START_TIMEOUT_S, Child, Work, kill, launch, too_slow_loading
from volley.rewards.scoring.group_terms import add_outcomes, make_group_terms, plain_terms
from volley.rewards.scoring.rubric import Reading, Rubric
from volley.rewards.terms import Outcome, all_of
from volley.rollout.errors import RewardError
from volley.rollout.types import Completion, Prompt, Score

MAX_WORKERS = 4
MAX_BATCH = 16
CLOSE_TIMEOUT_S = 5.0
MAX_FAILED_STARTS = 3
REAP_EVERY_S = 0.02


class Scorer:
    """Scores completions. Use as `async with Scorer(terms) as scorer:`, on one event loop, with any number of
    concurrent calls of `score` and `score_group`. Raises what `Rubric` and `make_group_terms` raise."""

    def __init__(self, terms: Sequence[RewardConfig], config: ScorerConfig | None = None) -> None:
        self._rubric = Rubric(plain_terms(terms))
        self._group_terms = make_group_terms(terms)
        self._labels = [term.label for term in self._rubric.terms]
        self._config = config or ScorerConfig()
        code.check_budgets(terms, self._config.timeout_s)
        self._cores = len(os.sched_getaffinity(0))
        self._waiting: deque[Work] = deque()
        self._children: list[Child] = []
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._broken: Exception | None = None
        self._closed = False
        self._hand_out_is_due = False

    async def __aenter__(self) -> "Scorer":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the children; none where every reward is cheap; and what scores whole groups. Raises RewardError if
        children cannot load a reward, or have not after `START_TIMEOUT_S`."""
        try:
            for term in self._group_terms:
                await term.start()
        except BaseException:
            await self.close()
            raise
        if not self._rubric.needs_children:
            return
        num_workers = self._config.workers or min(MAX_WORKERS, self._cores)
        ready: list[asyncio.Future[None]] = [asyncio.get_running_loop().create_future() for _ in range(num_workers)]
        self._keepers = [asyncio.ensure_future(self._keep(each)) for each in ready]
        try:
            await asyncio.gather(*ready)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Kill the children and cancel what waits for them. Takes `CLOSE_TIMEOUT_S` at most; may be called twice."""
        self._closed = True
        for process in self._processes:
            kill(process)
        for keeper in self._keepers:
            keeper.cancel()
        for child in self._children:
            child.end()
            self._waiting.extend(child.work)
        for work in self._waiting:
            work.done.cancel()
        self._waiting.clear()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=CLOSE_TIMEOUT_S)
        while self._reap() and time.monotonic() < deadline:
            await asyncio.sleep(REAP_EVERY_S)
        for term in self._group_terms:
            await term.close()

    async def score(self, prompt: Prompt, completion: Completion) -> Score:
        """The score of one completion. Whatever goes wrong in its rewards is told in `Score.unscorable`, not raised.
        Raises RewardError only once children cannot be started any more."""
        return (await self.timed_score(prompt, completion))[0]

    async def timed_score(self, prompt: Prompt, completion: Completion) -> tuple[Score, float]:
        """`score`, and the seconds that its terms worked on it, without the waiting."""
        item = Item.of(prompt, completion)
        reading = self._rubric.read(item)
        outcomes = self._rubric.compute_cheaply(item, reading)
        if None in outcomes:
            await self._compute(item, outcomes, reading)
        done = [outcome for outcome in outcomes if outcome is not None]
        seconds = math.fsum([reading.seconds, *(outcome.seconds for outcome in done)])
        return self._rubric.combine(item, done, reading), seconds

    async def score_group(
        self, prompt: Prompt, completions: Sequence[Completion], scores: Sequence[Score]
    ) -> tuple[Score, ...]:
        """The scores of a whole group, from those that `score` gave its completions: adds the terms that see all of
        them. Where a term compares and there is but one completion, nobody is asked, and its reward is not known (NaN),
        which is not unscorable. Raises RewardError when such a term has failed too often for the run to go on."""
        if not self._group_terms:
            return tuple(scores)
        if len(completions) == 1 and self.compares:
            return tuple(replace(score, reward=math.nan) for score in scores)
        items = [Item.of(prompt, each, score.accuracy) for each, score in zip(completions, scores, strict=True)]
        columns = await all_of([term.score_group(items) for term in self._group_terms])
        configs = [term.config for term in self._group_terms]
        return tuple(
            add_outcomes(score, configs, outcomes)
            for score, outcomes in zip(scores, zip(*columns, strict=True), strict=True)
        )

    @property
    def compares(self) -> bool:
        """Whether rewards mean something only among the completions of one group."""
        return any(term.compares for term in self._group_terms)

    def metrics(self) -> dict[str, float]:
        """What the terms that see whole groups have to tell since the last call, as `<label>/<name>`."""
        return {
            f"{term.config.label}/{name}": value for term in self._group_terms for name, value in term.metrics().items()
        }

    async def _compute(self, item: Item, outcomes: list[Outcome | None], reading: Reading) -> None:
        """Have the missing outcomes filled in by a child."""
        if self._broken:
            raise self._broken
        if self._closed or not self._keepers:
            raise RuntimeError("the scorer is not running; use it as 'async with Scorer(...) as scorer'")
        try:
            missing = [index for index, outcome in enumerate(outcomes) if outcome is None]
            is_read = not self._rubric.needs_response(missing, reading)
            work = Work.of(item, outcomes, missing, reading if is_read else None)
        except TypeError as error:
            lost = Outcome(math.nan, f"the row of the data cannot be handed to its rewards: {error}")
            outcomes[:] = [outcome or lost for outcome in outcomes]
            return
        self._waiting.append(work)
        self._hand_out_soon()
        await work.done

    def _hand_out_soon(self) -> None:
        """Hand out work at the end of this turn of the loop, so that what is asked for together travels together."""
        if not self._hand_out_is_due and not self._closed:
            self._hand_out_is_due = True
            asyncio.get_running_loop().call_soon(self._hand_out)

    def _hand_out(self) -> None:
        self._hand_out_is_due = False
        # Nothing is to wait behind another item while a child might soon be idle, unless there is enough for all.
        limit = FEW if len(self._waiting) >= MAX_BATCH * len(self._children) else 0
        for child in [each for each in self._children if each.is_up and len(each.work) <= limit]:
            share = min(MAX_BATCH, math.ceil(len(self._waiting) / (2 * len(self._children))))
            batch: list[Work] = []
            while self._waiting and len(batch) < share:
                work = self._waiting.popleft()
                if not work.done.done():
                    batch.append(work)
            if batch:
                child.give(batch)

    async def _keep(self, ready: "asyncio.Future[None]") -> None:
        """Keep one child running: start it, wait for its end, take back its work, start the next."""
        try:
            child = await self._start_child()
            ready.set_result(None)
            while True:
                self._children.append(child)
                self._hand_out_soon()
                await child.ended.wait()
                self._children.remove(child)
                self._waiting.extendleft(reversed(child.work))
                self._hand_out_soon()
                child = await self._replace()
        except Exception as error:
            if not ready.done():
                ready.set_exception(error)
            elif all(keeper.done() for keeper in self._keepers if keeper is not asyncio.current_task()):
                self._give_up(error)

    async def _replace(self) -> Child:
        for attempt in range(1, MAX_FAILED_STARTS + 1):
            try:
                return await self._start_child()
            except RewardError:
                if attempt == MAX_FAILED_STARTS:
                    raise
        raise AssertionError("unreachable")

    def _give_up(self, error: Exception) -> None:
        """The last child is gone and cannot be replaced."""
        self._broken = error
        for work in self._waiting:
            if not work.done.done():
                work.done.set_exception(error)
        self._waiting.clear()

    async def _start_child(self) -> Child:
        self._reap()
        cpu_s = math.ceil(self._config.timeout_s) * self._cores + 1
        network = self._config.network and bool(self._rubric.own_terms)
        try:
            process, connection = launch(self._rubric.terms, None, cpu_s, self._config.memory_bytes, network)
        except OSError as error:
            raise RewardError(f"rewards: a scoring process cannot be started ({error}).") from None
        self._processes.add(process)
        connection.setblocking(False)
        child = Child(process, self._labels, self._config.timeout_s, self._hand_out_soon)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.get_running_loop().create_unix_connection(lambda: child, sock=connection)
                await child.ready
        except TimeoutError:
            raise too_slow_loading(child.loading, START_TIMEOUT_S) from None
        finally:
            if not child.is_up:
                child.end()
        return child

    def _reap(self) -> bool:
        """Take leave of processes that have ended; whether some have not."""
        self._processes = {process for process in self._processes if process.poll() is None}
        return bool(self._processes)

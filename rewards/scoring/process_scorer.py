"""Scores single items: quick terms in the caller, everything else in scoring processes.

score() -- quick terms -- all done? --------------------------------> Rubric.combine
                            no: ProcessPool.submit, term by term --^
"""

import math
from collections.abc import Sequence
from types import TracebackType

from volley.rewards.code import verifier as code
from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.item import Item, Outcome
from volley.rewards.rubric.rubric import Extraction, Rubric
from volley.rewards.scoring.child_handle import Work
from volley.rewards.scoring.pool import ProcessPool
from volley.rollout.types import Score


class ProcessScorer:
    """An `ItemScorer` with processes on this machine.

    Use it on one event loop, with any number of concurrent calls. To score on several machines, create one per machine
    and pass an `ItemScorer` that distributes items among them to `Scorer`. Raises what `Rubric` raises, and ConfigError
    if a program could run for longer than the time limit.
    """

    def __init__(self, terms: Sequence[RewardConfig], config: ScorerConfig | None = None) -> None:
        """terms: plain terms only, see `group_terms.plain_terms`."""
        self._rubric = Rubric(terms)
        self._config = config or ScorerConfig()
        code.check_budgets(terms, self._config.timeout_s)
        network = self._config.network and bool(self._rubric.user_terms)
        self._pool = ProcessPool(self._rubric.terms, self._config, network)

    async def __aenter__(self) -> "ProcessScorer":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the processes, unless every reward is quick. Raises RewardError if a reward cannot be loaded."""
        if not self._rubric.needs_processes:
            return
        try:
            await self._pool.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop the processes and cancel waiting items. May be called twice."""
        await self._pool.close()

    async def score(self, item: Item) -> Score:
        """Score one item. A failing reward is reported in `Score.unscorable`, not raised.

        Raises RewardError only if scoring processes cannot be started any more.
        """
        return (await self.timed_score(item))[0]

    async def timed_score(self, item: Item) -> tuple[Score, float]:
        """`score`, and the seconds of work on this item, without waiting time."""
        extraction = self._rubric.extract(item)
        outcomes = self._rubric.compute_quick(item, extraction)
        if None in outcomes:
            await self._compute(item, outcomes, extraction)
        done = [outcome for outcome in outcomes if outcome is not None]
        seconds = math.fsum([extraction.seconds, *(outcome.seconds for outcome in done)])
        return self._rubric.combine(item, done, extraction), seconds

    async def _compute(self, item: Item, outcomes: list[Outcome | None], extraction: Extraction) -> None:
        """Fill in the missing outcomes in a process."""
        self._pool.check_running()
        try:
            missing = [index for index, outcome in enumerate(outcomes) if outcome is None]
            is_enough = not self._rubric.needs_response(missing, extraction)
            work = Work.of(item, outcomes, missing, extraction if is_enough else None)
        except TypeError as error:
            failed = Outcome(math.nan, f"the row of the data cannot be sent to its rewards: {error}")
            outcomes[:] = [outcome or failed for outcome in outcomes]
            return
        self._pool.submit(work)
        await work.done

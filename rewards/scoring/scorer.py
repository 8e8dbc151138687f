"""The reward service of a run: plain terms as each completion ends, group terms when its group is complete."""

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.item import Item
from volley.rewards.scoring.group_terms import add_outcomes, make_group_terms, plain_terms
from volley.rewards.scoring.interfaces import ItemScorer
from volley.rewards.scoring.process_scorer import ProcessScorer
from volley.rewards.terms import all_of
from volley.rollout.types import Completion, Prompt, Score


class Scorer:
    """Scores completions and groups. Use it as `async with Scorer(terms) as scorer:` on one event loop.

    Any number of concurrent calls is allowed. Raises what `ProcessScorer` and `make_group_terms` raise.
    """

    def __init__(
        self, terms: Sequence[RewardConfig], config: ScorerConfig | None = None, items: ItemScorer | None = None
    ) -> None:
        """items: scores the plain terms; the default is processes of this machine."""
        self._items = items or ProcessScorer(plain_terms(terms), config)
        self._group_terms = make_group_terms(terms)

    async def __aenter__(self) -> "Scorer":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the group terms and the scoring processes. Raises RewardError if a reward cannot be loaded."""
        try:
            for term in self._group_terms:
                await term.start()
            await self._items.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop everything that `start` started and cancel waiting items. May be called twice."""
        await self._items.close()
        for term in self._group_terms:
            await term.close()

    async def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Score one completion with the plain terms. A failing reward is reported in `Score.unscorable`, not raised.

        Raises RewardError only if scoring processes cannot be started any more.
        """
        return await self._items.score(Item.of(prompt, completion))

    async def score_group(
        self, prompt: Prompt, completions: Sequence[Completion], scores: Sequence[Score]
    ) -> tuple[Score, ...]:
        """Add the group terms to the scores of a whole group. scores: from `score`, one per completion.

        If a term compares and there is only one completion, no term is computed and the reward is NaN; the completion
        does not count as unscorable. Raises RewardError if a term has failed too often to continue the run.
        """
        if not self._group_terms:
            return tuple(scores)
        if len(completions) == 1 and self.compares:
            return tuple(replace(score, reward=float("nan")) for score in scores)
        items = [Item.of(prompt, each, score.accuracy) for each, score in zip(completions, scores, strict=True)]
        columns = await all_of([term.score_group(items) for term in self._group_terms])
        configs = [term.config for term in self._group_terms]
        return tuple(
            add_outcomes(score, configs, outcomes)
            for score, outcomes in zip(scores, zip(*columns, strict=True), strict=True)
        )

    @property
    def compares(self) -> bool:
        """Whether rewards are only meaningful among the completions of one group."""
        return any(term.compares for term in self._group_terms)

    def metrics(self) -> dict[str, float]:
        """Metrics of the group terms since the previous call, as `<label>/<name>`."""
        return {
            f"{term.config.label}/{name}": value for term in self._group_terms for name, value in term.metrics().items()
        }

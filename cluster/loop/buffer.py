"""The online source: prompts go out, scored groups come back, in the order of the prompts.

Slots are the only back-pressure. There are (max_staleness + 1) * groups_per_step of them. A slot is a ticket number; it
reopens only after the weights that its group trained were pushed.

Why that bounds the staleness of every sample by max_staleness:
- Tickets are taken in order, so ticket t is trained in step k = t // groups_per_step.
- It is issued when the slot of ticket t - slots is released, which is after the push of step k - max_staleness - 1. So
  it is sampled from version k - max_staleness or newer.
- In step k the version is k.
Taking groups in the order in which they finish, or dropping late groups, would lose the bound or prefer short answers.

max_staleness = 0 is synchronous training. Then everything random is a function of the seed: replacements for groups
without signal go out together, in ticket order, when all others have arrived, so nothing depends on timing.

Every prompt is accounted for at every moment: issued = trained + dropped/REASON + queued + in_flight. `replaced`
reports what was replaced on the way to a step's groups, because a yield over the other groups alone says nothing.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from volley.cluster.loop.interfaces import PromptRollout, SignalCheck
from volley.rollout.types import Prompt, ScoredGroup


@dataclass(frozen=True, slots=True)
class BufferConfig:
    """The limits of a `GroupBuffer`."""

    groups_per_step: int
    max_staleness: int
    max_replacements: int
    """Groups without signal that are replaced per step at most. Beyond that they are passed on as they are."""
    stall_s: float = 1800.0
    """How long `take` waits without any arrival before it raises `TimeoutError`."""


class GroupBuffer:
    """Keeps the slots full: issues prompts, collects scored groups, replaces those that teach nothing."""

    def __init__(
        self, prompt_at: Callable[[int], Prompt], rollout: PromptRollout, check: SignalCheck, config: BufferConfig
    ) -> None:
        self._prompt_at = prompt_at
        self._rollout = rollout
        self._check = check
        self._config = config
        self._replacements_left = config.max_replacements
        self._next_ordinal = 0
        self._again: deque[int] = deque()  # ordinals that were in flight when a checkpoint was written
        self._next_ticket = 0
        self._next_taken = 0
        self._in_flight: dict[int, int] = {}  # ticket -> ordinal
        self._ready: dict[int, ScoredGroup] = {}
        self._rejected: dict[int, tuple[ScoredGroup, str]] = {}
        self._trained = 0
        self._dropped: Counter[str] = Counter()
        self._dropped_of: dict[int, Counter[str]] = {}  # ticket -> groups replaced in it, by reason
        self._replaced: Counter[str] = Counter()
        self._arrival = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Open all slots. Rollouts run as children of `tasks`, so that the failure of one ends the run."""
        self._tasks = tasks
        self._open((self._config.max_staleness + 1) * self._config.groups_per_step)

    async def take(self, num_groups: int) -> list[ScoredGroup]:
        """The next groups in ticket order. Raises `TimeoutError`, naming the prompts waited for, on a stall."""
        tickets = range(self._next_taken, self._next_taken + num_groups)
        while not all(ticket in self._ready for ticket in tickets):
            self._arrival.clear()
            try:
                # Not wait_for: it swallows a cancellation that comes in the same event-loop turn as the arrival.
                async with asyncio.timeout(self._config.stall_s):
                    await self._arrival.wait()
            except TimeoutError:
                waiting = sorted(self._in_flight.values())[:8]
                raise TimeoutError(
                    f"rollout: no group arrived for {self._config.stall_s:g} s; waiting for prompts {waiting} to be "
                    "generated and scored"
                ) from None
        self._next_taken += num_groups
        self._trained += num_groups
        self._replaced = sum((self._dropped_of.pop(ticket, Counter()) for ticket in tickets), Counter())
        return [self._ready.pop(ticket) for ticket in tickets]

    def replaced(self) -> Counter[str]:
        """Groups that were sampled and replaced on the way to those of the last `take`, by reason."""
        return self._replaced

    async def release(self, num_groups: int) -> None:
        """Reopen the slots of groups that were trained on, after the push of the new weights."""
        self._replacements_left = self._config.max_replacements
        self._open(num_groups)

    def stop(self) -> None:
        """Cancel all rollouts in flight."""
        for task in self._running:
            task.cancel()

    def metrics(self) -> dict[str, float]:
        """The accounting with its residual."""
        return with_residual(self.accounting())

    def accounting(self) -> dict[str, int]:
        """issued, trained, queued, in_flight and dropped/REASON, in groups."""
        queued = len(self._ready) + len(self._rejected)
        counts = {"trained": self._trained, "queued": queued, "in_flight": len(self._in_flight)}
        dropped = {f"dropped/{reason}": number for reason, number in sorted(self._dropped.items())}
        return {"issued": self._issued, **counts, **dropped}

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the position in the order, and the prompts issued but not yet trained on."""
        in_flight = {**self._in_flight}
        in_flight |= {ticket: group.prompt.ordinal for ticket, group in self._ready.items()}
        in_flight |= {ticket: group.prompt.ordinal for ticket, (group, _) in self._rejected.items()}
        return {
            "next_ordinal": self._next_ordinal,
            "again": [in_flight[ticket] for ticket in sorted(in_flight)] + list(self._again),
            "trained": self._trained,
            "dropped": dict(self._dropped),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`. Call it before `start`."""
        self._next_ordinal = state["next_ordinal"]
        self._again = deque(state["again"])
        self._trained = state["trained"]
        self._dropped = Counter(state["dropped"])

    @property
    def _issued(self) -> int:
        return self._next_ordinal - len(self._again)

    def _open(self, num_slots: int) -> None:
        for _ in range(num_slots):
            self._issue(self._next_ticket)
            self._next_ticket += 1

    def _issue(self, ticket: int) -> None:
        if self._again:
            ordinal = self._again.popleft()
        else:
            ordinal = self._next_ordinal
            self._next_ordinal += 1
        self._in_flight[ticket] = ordinal
        task = self._tasks.create_task(self._fill(ticket, ordinal), name=f"rollout of prompt {ordinal}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _fill(self, ticket: int, ordinal: int) -> None:
        group = await self._rollout(self._prompt_at(ordinal))
        del self._in_flight[ticket]
        if reason := self._check(group):
            self._rejected[ticket] = group, reason
        else:
            self._ready[ticket] = group
        if self._config.max_staleness or not self._in_flight:
            self._settle_rejected()
        self._arrival.set()

    def _settle_rejected(self) -> None:
        """Replace groups without signal, in ticket order, while replacements are left; pass on the rest."""
        for ticket in sorted(self._rejected):
            group, reason = self._rejected.pop(ticket)
            if self._replacements_left > 0:
                self._replacements_left -= 1
                self._dropped[reason] += 1
                self._dropped_of.setdefault(ticket, Counter())[reason] += 1
                self._issue(ticket)
            else:
                self._ready[ticket] = group


def with_residual(accounting: Mapping[str, int]) -> dict[str, float]:
    """Add accounting_residual: issued - (trained + dropped + queued + in_flight). It is 0 unless prompts got lost."""
    explained = sum(count for name, count in accounting.items() if name != "issued")
    return {**accounting, "accounting_residual": accounting["issued"] - explained}

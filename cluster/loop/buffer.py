"""The online source: prompts go out, scored groups come back, oldest first.

Slots are the only back-pressure: there are (max_staleness + 1) * groups_per_step of them, a slot is a ticket number,
and a slot reopens only after the weights that came of its group were pushed. Why that bounds the age of every sample
by max_staleness: ticket t is trained in step k = t // groups_per_step, because tickets are taken in order. It is issued
when the slot of ticket t - slots is released, which is after the push of step k - max_staleness - 1; the weights then
are of version k - max_staleness or newer. In step k the version is k. Taking in finishing order, or dropping late
groups, would lose the bound or prefer short answers.

max_staleness = 0 is synchronous training, and then everything that is random is a function of the seed: replacements
for groups without signal go out together, in ticket order, once the others are in, so nothing depends on the clock.

Every prompt is accounted for: issued = trained + dropped{reason} + queued + in_flight, at every moment. A step is
also told what was replaced on the way to its groups (`replaced`): a yield over the groups that are left says nothing.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any

from volley.rollout.types import Prompt, ScoredGroup


class GroupBuffer:
    """prompt_at: the seeded order. roll: samples and scores one prompt. reason_against: why a group cannot be learned
    from, "" if it can. max_replacements: groups drawn anew at most per step; beyond that, groups without signal are
    handed on as they are. stall_s: how long `take` waits without any group coming in before it raises
    `TimeoutError`."""

    def __init__(
        self,
        prompt_at: Callable[[int], Prompt],
        roll: Callable[[Prompt], Awaitable[ScoredGroup]],
        groups_per_step: int,
        max_staleness: int,
        reason_against: Callable[[ScoredGroup], str],
        max_replacements: int,
        stall_s: float = 1800.0,
    ) -> None:
        self._prompt_at = prompt_at
        self._roll = roll
        self._groups_per_step = groups_per_step
        self._max_staleness = max_staleness
        self._reason_against = reason_against
        self._max_replacements = max_replacements
        self._stall_s = stall_s
        self._replacements_left = max_replacements
        self._next_ordinal = 0
        self._again: deque[int] = deque()  # ordinals that a checkpoint found under way
        self._next_ticket = 0
        self._next_taken = 0
        self._in_flight: dict[int, int] = {}  # ticket -> ordinal
        self._ready: dict[int, ScoredGroup] = {}
        self._rejected: dict[int, tuple[ScoredGroup, str]] = {}
        self._trained = 0
        self._dropped: Counter[str] = Counter()
        self._dropped_of: dict[int, Counter[str]] = {}  # ticket -> what was replaced in it
        self._replaced: Counter[str] = Counter()
        self._arrival = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Open all slots; rollouts run as children of `tasks`, so that a failure in one ends the run."""
        self._tasks = tasks
        self._open((self._max_staleness + 1) * self._groups_per_step)

    async def take(self, num_groups: int) -> list[ScoredGroup]:
        """The next groups in ticket order. Raises `TimeoutError`, naming the prompts waited for, on a stall."""
        tickets = range(self._next_taken, self._next_taken + num_groups)
        while not all(ticket in self._ready for ticket in tickets):
            self._arrival.clear()
            try:
                # Not wait_for, which swallows a cancellation that comes in the same turn as the arrival.
                async with asyncio.timeout(self._stall_s):
                    await self._arrival.wait()
            except TimeoutError:
                waiting = sorted(self._in_flight.values())[:8]
                raise TimeoutError(
                    f"rollout: no group came in for {self._stall_s:g} s; waiting for prompts {waiting} to be generated "
                    "and scored"
                ) from None
        self._next_taken += num_groups
        self._trained += num_groups
        self._replaced = sum((self._dropped_of.pop(ticket, Counter()) for ticket in tickets), Counter())
        return [self._ready.pop(ticket) for ticket in tickets]

    def replaced(self) -> Counter[str]:
        """Groups that were drawn and replaced on the way to those of the last `take`, by reason."""
        return self._replaced

    async def release(self, num_groups: int) -> None:
        """Reopen the slots of groups that were trained on and whose weights were pushed."""
        self._replacements_left = self._max_replacements
        self._open(num_groups)

    def stop(self) -> None:
        """Cancel what is under way."""
        for task in self._running:
            task.cancel()

    def accounting(self) -> dict[str, int]:
        """issued, trained, queued, in_flight and dropped/<reason>, in groups."""
        queued = len(self._ready) + len(self._rejected)
        counts = {"trained": self._trained, "queued": queued, "in_flight": len(self._in_flight)}
        dropped = {f"dropped/{reason}": number for reason, number in sorted(self._dropped.items())}
        return {"issued": self._issued, **counts, **dropped}

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the frontier of the order, and what was issued but not yet trained on."""
        under_way = {**self._in_flight}
        under_way |= {ticket: group.prompt.ordinal for ticket, group in self._ready.items()}
        under_way |= {ticket: group.prompt.ordinal for ticket, (group, _) in self._rejected.items()}
        return {
            "next_ordinal": self._next_ordinal,
            "again": [under_way[ticket] for ticket in sorted(under_way)] + list(self._again),
            "trained": self._trained,
            "dropped": dict(self._dropped),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; to be called before `start`."""
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
        group = await self._roll(self._prompt_at(ordinal))
        del self._in_flight[ticket]
        if reason := self._reason_against(group):
            self._rejected[ticket] = group, reason
        else:
            self._ready[ticket] = group
        if self._max_staleness or not self._in_flight:
            self._settle_rejected()
        self._arrival.set()

    def _settle_rejected(self) -> None:
        """Replace groups without signal, in ticket order, as long as replacements are left; hand on the rest."""
        for ticket in sorted(self._rejected):
            group, reason = self._rejected.pop(ticket)
            if self._replacements_left > 0:
                self._replacements_left -= 1
                self._dropped[reason] += 1
                self._dropped_of.setdefault(ticket, Counter())[reason] += 1
                self._issue(ticket)
            else:
                self._ready[ticket] = group

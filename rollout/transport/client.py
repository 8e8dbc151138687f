"""One push of new weights from the learner to all engines, in phases that each have a deadline and a name.

    connect   the learner's rank 0 and every rank of every engine form a group (only when its members change)
    transfer  the learner sends, the engines receive; over gloo they go on generating
    commit    each engine pauses, loads, and serves the new version

An engine that dies, hangs, or receives something else than was sent is given up, the group is formed anew without it
and the push is sent again in whole. What breaks without anybody to blame (a cut link) is tried again, `attempts` times.
Over gloo nobody has loaded anything before everybody is known to have received all of it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from rollout.config import TransferConfig
from rollout.engine import EngineLost
from rollout.transport.stream import TensorMeta, TransportError

GRACE_S = 5.0
"""How much longer than the group's own deadline a receiver may take to say that it failed."""


class Receiver(Protocol):
    """An engine that takes part: `remote_engine.RemoteEngine`."""

    name: str
    num_ranks: int
    lost: str

    async def connect(self, init_info: dict[str, Any], deadline_s: float) -> str: ...
    async def receive(self, metas: Sequence[TensorMeta], deadline_s: float) -> tuple[str, str]: ...
    async def commit(self, version: int, deadline_s: float) -> None: ...
    def lose(self, reason: str) -> None: ...


class Sender(Protocol):
    """The learner's side: `learner.group.LearnerGroup`."""

    async def open_transfer(self, transport: str) -> tuple[str, int]:
        """Where the group will meet: address and port."""
        ...

    async def connect_transfer(self, world_size: int, config: TransferConfig) -> None: ...
    async def send_weights(self) -> str: ...
    async def close_transfer(self) -> None: ...
    async def weight_metas(self) -> Sequence[TensorMeta]: ...


R = TypeVar("R", bound=Receiver)


@dataclass(frozen=True)
class PushReport(Generic[R]):
    """num_attempts: 1 when nothing went wrong. committed: the engines that serve the new version."""

    seconds: float
    num_bytes: int
    num_attempts: int
    committed: tuple[R, ...]


class WeightClient:
    """transport: "gloo" or "nccl". attempts: how often a push is sent before the run gives up."""

    def __init__(self, sender: Sender, transport: str, config: TransferConfig, attempts: int = 5) -> None:
        self._sender = sender
        self._transport = transport
        self._config = config
        self._attempts = attempts
        self._members: tuple[Receiver, ...] = ()
        self._metas: Sequence[TensorMeta] = ()

    async def push(self, receivers: Sequence[R], version: int) -> PushReport[R]:
        """Make `receivers` serve the learner's weights as `version`; those that cannot are given up (`lose`).

        Raises `TransportError` when the push fails again and again without an engine to blame.
        """
        started = time.perf_counter()
        self._metas = self._metas or await self._sender.weight_metas()
        num_bytes = sum(meta.num_bytes for meta in self._metas)
        for attempt in range(1, self._attempts + 1):
            alive = tuple(receiver for receiver in receivers if not receiver.lost)
            if not alive:
                return PushReport(time.perf_counter() - started, num_bytes, attempt, ())
            problem = await self._connect(alive) if self._members != alive else ""
            problem = problem or await self._transfer(alive)
            if not problem:
                break
            await self._leave()
            if all(not receiver.lost for receiver in alive):
                # Nobody is to blame: perhaps a link that comes back.
                await asyncio.sleep(min(2.0**attempt / 4, self._config.connect_s))
        else:
            raise TransportError(f"push of version {version}: {problem}; tried {self._attempts} times")
        await _each(alive, lambda receiver: receiver.commit(version, self._config.commit_s))
        committed = tuple(receiver for receiver in alive if not receiver.lost)
        if committed != alive:
            await self._leave()
        return PushReport(time.perf_counter() - started, num_bytes, attempt, committed)

    async def close(self) -> None:
        """Leave the group."""
        if self._members:
            await self._leave()

    async def _connect(self, receivers: tuple[Receiver, ...]) -> str:
        await self._leave()
        address, port = await self._sender.open_transfer(self._transport)
        world_size = 1 + sum(receiver.num_ranks for receiver in receivers)
        offsets, offset = {}, 1
        for receiver in receivers:
            offsets[receiver.name] = offset
            offset += receiver.num_ranks

        async def join(receiver: Receiver) -> str:
            info = {
                "master_address": address,
                "master_port": port,
                "rank_offset": offsets[receiver.name],
                "world_size": world_size,
            }
            if self._transport == "gloo":
                # Each engine fills in its own address.
                info |= {"address": "", "bucket_bytes": self._config.bucket_bytes}
                info |= {"connect_s": self._config.connect_s, "transfer_s": self._config.transfer_s}
            else:
                info |= {"packed": True}
            return await receiver.connect(info, self._config.connect_s + GRACE_S)

        leading = asyncio.ensure_future(_problem(self._sender.connect_transfer(world_size, self._config)))
        answers = await _each(receivers, join)
        problem = await leading or next((answer for answer in answers if isinstance(answer, str) and answer), "")
        self._members = receivers
        return f"connect: {problem}" if problem else _lost(receivers)

    async def _transfer(self, receivers: tuple[Receiver, ...]) -> str:
        deadline_s = self._config.transfer_s + GRACE_S
        sending = asyncio.ensure_future(self._send())
        answers = await _each(receivers, lambda receiver: receiver.receive(self._metas, deadline_s))
        sent, problem = await sending
        problems = [problem] if problem else []
        for receiver, answer in zip(receivers, answers, strict=True):
            if isinstance(answer, BaseException):
                continue
            checksum, error = answer
            if error:
                problems.append(f"worker {receiver.name}: {error}")
            elif not problem and checksum != sent:
                receiver.lose(f"receive: got {checksum} where the learner sent {sent}")
        return "; ".join(problems) or _lost(receivers)

    async def _send(self) -> tuple[str, str]:
        try:
            return await self._sender.send_weights(), ""
        except TransportError as error:
            # Whoever still waits for the rest learns that it will not come.
            await self._sender.close_transfer()
            return "", str(error)

    async def _leave(self) -> None:
        self._members = ()
        await self._sender.close_transfer()


async def _problem(work: Awaitable[Any]) -> str:
    try:
        await work
    except TransportError as error:
        return str(error)
    return ""


async def _each(receivers: Sequence[R], work: Callable[[R], Awaitable[Any]]) -> list[Any]:
    """`work` on all at once; the loss of one is its answer and disturbs no other."""
    answers = await asyncio.gather(*(work(receiver) for receiver in receivers), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, EngineLost):
            raise answer
    return answers


def _lost(receivers: Sequence[Receiver]) -> str:
    return next((receiver.lost for receiver in receivers if receiver.lost), "")

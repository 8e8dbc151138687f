"""One push of new weights from the learner to all engines, in phases that each have a deadline and a name.

    connect   the learner's rank 0 and every rank of every engine form a group (only when its members change)
    transfer  the learner sends, the engines receive; over gloo they keep generating
    commit    each engine pauses, loads, and reports the version and digest of the weights that it holds now
    resume    the engines that agree serve the new version

An engine that dies, hangs, or receives other bytes than were sent is given up. The group is then formed again without
it, and the whole push is sent again. A failure without an engine to blame (a cut link) is retried, `attempts` times.
Over gloo no engine loads anything before all engines are known to have received everything.

A transfer may take any time while it makes progress: its deadline applies to the learner's position in the stream. A
learner that waits for a lost engine (over nccl, without end) is told to abort. If it still does not return, the run
ends with the name of the phase and the tensor.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from volley.rollout.config import TransferConfig
from volley.rollout.errors import EngineLost
from volley.rollout.transport.protocol import JoinRequest, ReceiverEnd, RemoteReceiver, RemoteSender, SenderEnd
from volley.rollout.transport.stream import TensorMeta, TransportError

GRACE_S = 5.0
"""How much longer than a phase's own deadline its members may take to report their failure."""
LOOK_S = 1.0
"""How often the position of a transfer is checked."""


R = TypeVar("R", bound=RemoteReceiver)
T = TypeVar("T")


@dataclass(frozen=True)
class PushReport(Generic[R]):
    """The result of a push."""

    seconds: float
    num_bytes: int
    num_attempts: int
    """1 if nothing went wrong."""
    committed: tuple[R, ...]
    """The engines that serve the new version."""


class WeightClient:
    """Drives pushes from one sender to any receivers."""

    def __init__(self, sender: RemoteSender, transport: str, config: TransferConfig, attempts: int = 5) -> None:
        """transport: "gloo" or "nccl". attempts: how often a push is sent before the run fails."""
        self._sender = sender
        self._transport = transport
        self._config = config
        self._attempts = attempts
        self._members: tuple[RemoteReceiver, ...] = ()
        self._metas: Sequence[TensorMeta] = ()

    async def push(self, receivers: Sequence[R], version: int) -> PushReport[R]:
        """Make `receivers` serve the learner's weights as `version`; those that cannot are given up (`lose`).

        Raises `TransportError` when all attempts failed without an engine to blame, or when the learner hangs.
        """
        async with self._sender.exclusive():
            try:
                return await self._push(receivers, version)
            except TransportError as error:
                raise TransportError(f"push of version {version}: {error}") from None

    async def _push(self, receivers: Sequence[R], version: int) -> PushReport[R]:
        started = time.perf_counter()
        self._metas = self._metas or await self._ask_sender("connect", self._sender.transfer(SenderEnd.metas))
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
                # No engine is to blame; it may be a link that recovers.
                await asyncio.sleep(min(2.0**attempt / 4, self._config.connect_s))
        else:
            raise TransportError(f"{problem}; tried {self._attempts} times")
        await self._commit(alive, version)
        committed = tuple(receiver for receiver in alive if not receiver.lost)
        if committed != alive:
            await self._leave()
        return PushReport(time.perf_counter() - started, num_bytes, attempt, committed)

    async def _connect(self, receivers: tuple[RemoteReceiver, ...]) -> str:
        """Form the group; returns what went wrong, or ""."""
        await self._leave()
        address, port = await self._ask_sender("connect", self._sender.transfer(SenderEnd.open, self._transport))
        world_size = 1 + sum(receiver.num_ranks for receiver in receivers)
        requests, offset = {}, 1
        for receiver in receivers:
            requests[receiver.name] = JoinRequest(address, port, offset, world_size, self._config)
            offset += receiver.num_ranks
        deadline_s = self._config.connect_s + GRACE_S

        async def lead() -> str:
            work = self._sender.transfer(SenderEnd.connect, world_size, self._config)
            connecting = asyncio.ensure_future(_error_of(work))
            await asyncio.wait([connecting], timeout=deadline_s)
            if not connecting.done():
                await self._abort(connecting, "connect")
            return connecting.result()

        leading = asyncio.ensure_future(lead())
        answers = await _each(
            receivers, lambda receiver: receiver.transfer(deadline_s, ReceiverEnd.connect, requests[receiver.name])
        )
        errors = [await leading, *(str(answer) for answer in answers if isinstance(answer, TransportError))]
        problem = next(filter(None, errors), "")
        self._members = receivers
        return f"connect: {problem}" if problem else _reason_lost(receivers)

    async def _transfer(self, receivers: tuple[RemoteReceiver, ...]) -> str:
        """Send and receive all tensors; returns what went wrong, or ""."""
        sending = asyncio.ensure_future(self._send())
        # No deadline: the progress of the whole transfer is watched instead.
        receiving = [asyncio.ensure_future(each.transfer(None, ReceiverEnd.receive, self._metas)) for each in receivers]
        try:
            await self._watch(sending, receivers, receiving)
        finally:
            for task in (sending, *receiving):
                task.cancel()
                task.add_done_callback(_retrieve_exception)
        answers = await _settled(receiving)
        sent, problem = sending.result()
        problems = [problem] if problem else []
        for receiver, answer in zip(receivers, answers, strict=True):
            if isinstance(answer, TransportError):
                problems.append(f"worker {receiver.name}: {answer}")
            elif not isinstance(answer, BaseException) and not problem and answer != sent:
                receiver.lose(f"receive: got {answer} where the learner sent {sent}")
        return "; ".join(problems) or _reason_lost(receivers)

    async def _watch(
        self,
        sending: "asyncio.Future[tuple[str, str]]",
        receivers: tuple[RemoteReceiver, ...],
        receiving: "Sequence[asyncio.Future[str]]",
    ) -> None:
        """Wait until all have ended. When there is no progress, those that still wait are given up."""
        now = asyncio.get_running_loop().time
        tasks: list[asyncio.Future[Any]] = [sending, *receiving]
        position, num_arrived, moved_at = "", 0, now()
        while pending := [task for task in tasks if not task.done()]:
            ended, _ = await asyncio.wait(pending, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()  # raises here if a learner rank was lost
            if all(task.done() for task in pending):
                return
            last, position = position, position if ended else await self._position(position)
            has_failed_to_send = sending.done() and bool(sending.result()[1])
            num_failed = has_failed_to_send + sum(map(_has_failed, receiving))
            arrived = sum(task.done() for task in tasks) - num_failed
            if (position, arrived) != (last, num_arrived):
                num_arrived, moved_at = arrived, now()
            waited = now() - moved_at
            if waited > self._config.transfer_s + GRACE_S:
                for receiver, task in zip(receivers, receiving, strict=True):
                    if not task.done():
                        where = f"at tensor {position or '(none yet)'}"
                        receiver.lose(f"receive: no progress for {self._config.transfer_s:g} s {where}")
                        task.cancel()
            elif not num_failed or waited <= GRACE_S:
                continue
            if not sending.done():
                await self._abort(sending, f"send: at tensor {position or '(none yet)'}")

    async def _position(self, last: str) -> str:
        try:
            async with asyncio.timeout(LOOK_S):
                return await self._sender.transfer(SenderEnd.position)
        except TimeoutError:
            return last

    async def _abort(self, work: "asyncio.Future[Any]", phase: str) -> None:
        """Make the learner's part of a phase end; `work` then has its result."""
        aborting = asyncio.ensure_future(self._sender.transfer(SenderEnd.abort))
        aborting.add_done_callback(_retrieve_exception)
        await asyncio.wait([work], timeout=2 * GRACE_S)
        aborting.cancel()
        if not work.done():
            work.cancel()
            raise TransportError(f"{phase}: the learner hangs and did not react to an abort")

    async def _send(self) -> tuple[str, str]:
        """Checksum and error of the learner's part of a transfer."""
        try:
            return await self._sender.transfer(SenderEnd.send), ""
        except TransportError as error:
            # Receivers that still wait for the rest fail when the group is closed.
            await self._sender.transfer(SenderEnd.close)
            return "", str(error)

    async def _commit(self, receivers: tuple[RemoteReceiver, ...], version: int) -> None:
        """Let all engines load. Those with the weights that more than half of them hold serve them."""
        deadline_s = self._config.commit_s
        answers = await _each(receivers, lambda receiver: receiver.transfer(deadline_s, ReceiverEnd.commit, version))
        loaded = []
        for receiver, answer in zip(receivers, answers, strict=True):
            if isinstance(answer, TransportError):
                receiver.lose(f"commit: {answer}")
            elif not isinstance(answer, BaseException):
                loaded.append((receiver, answer))
        digests = Counter(answer.digest for _, answer in loaded)
        majority = {digest for digest, count in digests.items() if 2 * count > len(loaded)}
        for receiver, answer in loaded:
            if answer.version != version:
                receiver.lose(f"commit: it reports version {answer.version} where {version} was sent")
            elif answer.digest not in majority:
                receiver.lose(f"commit: its weights have digest {answer.digest}, unlike most of the engines")

        async def resume(receiver: RemoteReceiver) -> None:
            receiver.version = await receiver.transfer(deadline_s, ReceiverEnd.resume)

        await _each([receiver for receiver, _ in loaded if not receiver.lost], resume)

    async def _leave(self) -> None:
        self._members = ()
        await self._ask_sender("leave", self._sender.transfer(SenderEnd.close))

    async def _ask_sender(self, phase: str, work: Awaitable[T]) -> T:
        """The learner's answer to a verb that takes it no time."""
        try:
            async with asyncio.timeout(self._config.connect_s + GRACE_S):
                return await work
        except TimeoutError:
            raise TransportError(f"{phase}: the learner did not answer") from None


async def _error_of(work: Awaitable[Any]) -> str:
    """The message of the `TransportError` that the work raises, or ""."""
    try:
        await work
    except TransportError as error:
        return str(error)
    return ""


async def _each(receivers: Sequence[R], work: Callable[[R], Awaitable[Any]]) -> list[Any]:
    """`work` on all receivers at the same time; see `_settled`."""
    return await _settled([asyncio.ensure_future(work(receiver)) for receiver in receivers])


async def _settled(tasks: "Sequence[asyncio.Future[Any]]") -> list[Any]:
    """The results of all tasks. The loss of one engine, and the failure of one transfer, is its result."""
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for answer in answers:
        expected = EngineLost | TransportError | asyncio.CancelledError
        if isinstance(answer, BaseException) and not isinstance(answer, expected):
            raise answer
    return answers


def _has_failed(task: "asyncio.Future[Any]") -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _retrieve_exception(task: "asyncio.Future[Any]") -> None:
    """Keep asyncio from logging the exception of a task that is no longer awaited."""
    if not task.cancelled():
        task.exception()


def _reason_lost(receivers: Sequence[RemoteReceiver]) -> str:
    return next((receiver.lost for receiver in receivers if receiver.lost), "")

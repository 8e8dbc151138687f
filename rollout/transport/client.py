"""One push of new weights from the learner to all engines, in phases that each have a deadline and a name.

    connect   the learner's rank 0 and every rank of every engine form a group (only when its members change)
    transfer  the learner sends, the engines receive; over gloo they go on generating
    commit    each engine pauses, loads, and says which version and which weights it holds now
    resume    those that agree serve the new version

An engine that dies, hangs, or receives something else than was sent is given up, the group is formed anew without it
and the push is sent again in whole. What breaks without anybody to blame (a cut link) is tried again, `attempts` times.
Over gloo nobody has loaded anything before everybody is known to have received all of it.

A transfer may take as long as it likes while it moves: its deadline is on the learner's position in the stream. A
learner that waits for an engine which is gone (nccl would, for ever) is told to leave the group; one that does not come
back even then ends the run with the name of phase and tensor.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from volley.rollout.config import TransferConfig
from volley.rollout.engines.engine import EngineLost
from volley.rollout.transport.protocol import Receiver, Sender
from volley.rollout.transport.stream import TensorMeta, TransportError

GRACE_S = 5.0
"""How much longer than the group's own deadline anybody may take to say that it failed."""
LOOK_S = 1.0
"""How often a transfer under way is asked how far it is."""


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

        Raises `TransportError` when the push fails again and again without an engine to blame, or when the learner
        hangs in it.
        """
        async with self._sender.exclusive():
            try:
                return await self._push(receivers, version)
            except TransportError as error:
                raise TransportError(f"push of version {version}: {error}") from None

    async def _push(self, receivers: Sequence[R], version: int) -> PushReport[R]:
        started = time.perf_counter()
        self._metas = self._metas or await self._answer("connect", self._sender.weight_metas())
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
            raise TransportError(f"{problem}; tried {self._attempts} times")
        await self._commit(alive, version)
        committed = tuple(receiver for receiver in alive if not receiver.lost)
        if committed != alive:
            await self._leave()
        return PushReport(time.perf_counter() - started, num_bytes, attempt, committed)

    async def _connect(self, receivers: tuple[Receiver, ...]) -> str:
        await self._leave()
        address, port = await self._answer("connect", self._sender.open_transfer(self._transport))
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
                "connect_s": self._config.connect_s,
                "transfer_s": self._config.transfer_s,
            }
            if self._transport == "gloo":
                # Each engine fills in its own address.
                info |= {"address": "", "bucket_bytes": self._config.bucket_bytes}
            else:
                info |= {"packed": True}
            return await receiver.connect(info, self._config.connect_s + GRACE_S)

        async def lead() -> str:
            connecting = asyncio.ensure_future(_problem(self._sender.connect_transfer(world_size, self._config)))
            await asyncio.wait([connecting], timeout=self._config.connect_s + GRACE_S)
            if not connecting.done():
                await self._abort(connecting, "connect")
            return connecting.result()

        leading = asyncio.ensure_future(lead())
        answers = await _each(receivers, join)
        problem = await leading or next((answer for answer in answers if isinstance(answer, str) and answer), "")
        self._members = receivers
        return f"connect: {problem}" if problem else _lost(receivers)

    async def _transfer(self, receivers: tuple[Receiver, ...]) -> str:
        sending = asyncio.ensure_future(self._send())
        receiving = [asyncio.ensure_future(receiver.receive(self._metas)) for receiver in receivers]
        try:
            await self._watch(sending, receivers, receiving)
        finally:
            for task in (sending, *receiving):
                task.cancel()
        answers = await _settled(receiving)
        sent, problem = sending.result()
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

    async def _watch(
        self,
        sending: "asyncio.Future[tuple[str, str]]",
        receivers: tuple[Receiver, ...],
        receiving: "Sequence[asyncio.Future[tuple[str, str]]]",
    ) -> None:
        """Until all have ended. Where nothing moves any more, whoever still waits is given up."""
        now = asyncio.get_running_loop().time
        position, num_arrived, moved_at = "", 0, now()
        while pending := [task for task in (sending, *receiving) if not task.done()]:
            ended, _ = await asyncio.wait(pending, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()  # the loss of a learner rank ends it here
            if all(task.done() for task in pending):
                return
            last, position = position, position if ended else await self._position(position)
            failed = [task for task in (sending, *receiving) if task.done() and _failed(task)]
            arrived = sum(task.done() for task in (sending, *receiving)) - len(failed)
            if (position, arrived) != (last, num_arrived):
                num_arrived, moved_at = arrived, now()
            waited = now() - moved_at
            if waited > self._config.transfer_s + GRACE_S:
                for receiver, task in zip(receivers, receiving, strict=True):
                    if not task.done():
                        where = f"at tensor {position or '(none yet)'}"
                        receiver.lose(f"receive: nothing moved for {self._config.transfer_s:g} s {where}")
                        task.cancel()
            elif not failed or waited <= GRACE_S:
                continue
            if not sending.done():
                await self._abort(sending, f"send: at tensor {position or '(none yet)'}")

    async def _position(self, last: str) -> str:
        try:
            async with asyncio.timeout(LOOK_S):
                return await self._sender.transfer_position()
        except TimeoutError:
            return last

    async def _abort(self, work: "asyncio.Future[Any]", phase: str) -> None:
        """Make the learner's part of a phase end; what it then says stands in `work`."""
        aborting = asyncio.ensure_future(self._sender.abort_transfer())
        aborting.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([work], timeout=2 * GRACE_S)
        aborting.cancel()
        if not work.done():
            work.cancel()
            raise TransportError(f"{phase}: the learner hangs, also after it was told to leave the group")

    async def _send(self) -> tuple[str, str]:
        try:
            return await self._sender.send_weights(), ""
        except TransportError as error:
            # Whoever still waits for the rest learns that it will not come.
            await self._sender.close_transfer()
            return "", str(error)

    async def _commit(self, receivers: tuple[Receiver, ...], version: int) -> None:
        """All load; those serve whose weights are the ones that more than half of them hold."""
        answers = await _each(receivers, lambda receiver: receiver.commit(version, self._config.commit_s))
        loaded = [
            (receiver, answer)
            for receiver, answer in zip(receivers, answers, strict=True)
            if not isinstance(answer, BaseException)
        ]
        digests = Counter(answer.digest for _, answer in loaded)
        most = {digest for digest, count in digests.items() if 2 * count > len(loaded)}
        for receiver, answer in loaded:
            if answer.version != version:
                receiver.lose(f"commit: it says version {answer.version} where {version} was sent")
            elif answer.digest not in most:
                receiver.lose(f"commit: its weights are {answer.digest}, which most of the engines' are not")
        serving = [receiver for receiver, _ in loaded if not receiver.lost]
        await _each(serving, lambda receiver: receiver.resume(self._config.commit_s))

    async def _leave(self) -> None:
        self._members = ()
        await self._answer("leave", self._sender.close_transfer())

    async def _answer(self, phase: str, work: Awaitable[Any]) -> Any:
        """Of the learner, to what takes it no time."""
        try:
            async with asyncio.timeout(self._config.connect_s + GRACE_S):
                return await work
        except TimeoutError:
            raise TransportError(f"{phase}: the learner did not answer") from None


async def _problem(work: Awaitable[Any]) -> str:
    try:
        await work
    except TransportError as error:
        return str(error)
    return ""


async def _each(receivers: Sequence[R], work: Callable[[R], Awaitable[Any]]) -> list[Any]:
    """`work` on all at once; the loss of one is its answer and disturbs no other."""
    return await _settled([asyncio.ensure_future(work(receiver)) for receiver in receivers])


async def _settled(tasks: "Sequence[asyncio.Future[Any]]") -> list[Any]:
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, EngineLost | asyncio.CancelledError):
            raise answer
    return answers


def _failed(task: "asyncio.Future[tuple[str, str]]") -> bool:
    """Whether it ended without what it was for."""
    return task.cancelled() or task.exception() is not None or bool(task.result()[1])


def _lost(receivers: Sequence[Receiver]) -> str:
    return next((receiver.lost for receiver in receivers if receiver.lost), "")

"""The verbs of a push, for the sender's end and the receiver's end, and how the push client reaches both ends.

A verb is declared once, as a method of `SenderEnd` or `ReceiverEnd`, and implemented once: in
`learner.ranks.weights.WeightSender` and in `rollout.engines.async_vllm.AsyncVllmEngine`. Everything between the client
and the two ends (learner group, learner rank, rollout worker, actors) forwards a verb by name with its arguments, so
that `await sender.transfer(SenderEnd.open, "gloo")` is type-checked and no intermediary repeats the verb.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, TypeVarTuple

from volley.rollout.config import TransferConfig
from volley.rollout.transport.stream import TensorMeta
from volley.rollout.types import LoadedWeights

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """What an engine must know to join the group of a push."""

    master_address: str
    """Where the group meets: the address of the learner's rank 0."""
    master_port: int
    rank_offset: int
    """Rank in the group of the engine's first process."""
    world_size: int
    """Number of ranks in the group: the sender, and every process of every engine."""
    config: TransferConfig

    def init_info(self, transport: str, address: str) -> dict[str, Any]:
        """The request as vLLM's weight-transfer API takes it. address: of the engine's own machine."""
        info: dict[str, Any] = {
            "master_address": self.master_address,
            "master_port": self.master_port,
            "rank_offset": self.rank_offset,
            "world_size": self.world_size,
            "connect_s": self.config.connect_s,
            "transfer_s": self.config.transfer_s,
        }
        if transport == "gloo":
            return info | {"address": address, "bucket_bytes": self.config.bucket_bytes}
        return info | {"packed": True}


class SenderEnd(Protocol):
    """The sender's end on one learner rank. Rank 0 sends; the other ranks take part in gathering the weights.

    All verbs may raise `TransportError`.
    """

    def metas(self) -> Sequence[TensorMeta]:
        """The tensors of a push, in the order of sending."""
        ...

    def open(self, transport: str) -> tuple[str, int]:
        """Open the port where the group of the next push meets; returns rank 0's address and port."""
        ...

    def connect(self, world_size: int, config: TransferConfig) -> None:
        """Form the group with the engines' ranks."""
        ...

    def send(self) -> str:
        """Send all tensors once; returns the checksum of the stream ("" if the transport has none)."""
        ...

    def position(self) -> str:
        """The tensor that is being sent. May be called during `send`."""
        ...

    def abort(self) -> None:
        """Make a `connect` or `send` under way fail. May be called during either."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


CONCURRENT_VERBS = frozenset({SenderEnd.position.__name__, SenderEnd.abort.__name__})
"""Verbs of the sender's end that are called while another one runs, on rank 0 only."""


class ReceiverEnd(Protocol):
    """The receiver's end in one engine."""

    async def connect(self, request: JoinRequest) -> None:
        """Join the group; returns when all members have joined. Raises `TransportError`."""
        ...

    async def receive(self, metas: Sequence[TensorMeta]) -> str:
        """Receive one push while the learner sends; returns the checksum of the stream ("" if the transport has none).
        Raises `TransportError`."""
        ...

    async def commit(self, version: int) -> LoadedWeights:
        """Pause, load what was received, and return what is loaded now. Requests wait until `resume`."""
        ...

    async def resume(self) -> int:
        """Serve what was committed; returns its version."""
        ...


@dataclass(frozen=True, slots=True)
class VerbResult:
    """The outcome of a verb on its way back from an engine: a failed transfer does not make the engine itself lost."""

    value: Any
    error: str = ""
    """The message of the `TransportError`; "" if there was none."""


class RemoteSender(Protocol):
    """The sender's end on all learner ranks, as the push client reaches it: `learner.ranks.group.LearnerGroup`."""

    def exclusive(self) -> AbstractAsyncContextManager[Any]:
        """Reserves the learner for a push: all its verbs are called within."""
        ...

    async def transfer(self, verb: Callable[[SenderEnd, *Ts], T], *arguments: *Ts) -> T:
        """Call a verb on every rank, or on rank 0 for `CONCURRENT_VERBS`; returns rank 0's result."""
        ...


class RemoteReceiver(Protocol):
    """The receiver's end of one engine, as the push client reaches it: `rollout.engines.remote.RemoteEngine`."""

    name: str
    version: int
    """Weight version that the engine serves; set by the client."""
    num_ranks: int
    """Processes that take part in a push."""
    lost: str
    """Why the engine is lost; "" while it is not."""

    async def transfer(
        self, deadline_s: float | None, verb: Callable[[ReceiverEnd, *Ts], Awaitable[T]], *arguments: *Ts
    ) -> T:
        """Call a verb in the engine. Raises `TransportError` as the verb does, and `EngineLost` if the engine is lost
        or does not answer within the deadline."""
        ...

    def lose(self, reason: str) -> None:
        """Declare the engine lost."""
        ...

"""Who takes part in a push, as the client that drives it sees them."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from volley.rollout.config import TransferConfig
from volley.rollout.transport.stream import TensorMeta
from volley.rollout.types import LoadedWeights


class Receiver(Protocol):
    """An engine that takes part: `remote_engine.RemoteEngine`."""

    name: str
    num_ranks: int
    lost: str

    async def connect(self, init_info: dict[str, Any], deadline_s: float) -> str: ...
    async def receive(self, metas: Sequence[TensorMeta]) -> tuple[str, str]: ...
    async def commit(self, version: int, deadline_s: float) -> LoadedWeights: ...
    async def resume(self, deadline_s: float) -> None: ...
    def lose(self, reason: str) -> None: ...


class Sender(Protocol):
    """The learner's side: `volley.learner.ranks.group.LearnerGroup`."""

    def exclusive(self) -> AbstractAsyncContextManager[Any]:
        """Nobody else has the learner do anything; all that follows is asked for within."""
        ...

    async def open_transfer(self, transport: str) -> tuple[str, int]:
        """Where the group will meet: address and port."""
        ...

    async def connect_transfer(self, world_size: int, config: TransferConfig) -> None: ...
    async def send_weights(self) -> str: ...
    async def close_transfer(self) -> None: ...
    async def weight_metas(self) -> Sequence[TensorMeta]: ...

    async def abort_transfer(self) -> None:
        """Have a `connect_transfer` or `send_weights` under way fail."""
        ...

    async def transfer_position(self) -> str:
        """The tensor that is being sent."""
        ...

"""A model's weights as one stream of bytes in buckets, broadcast over gloo from one sender to many receivers.

Both sides know the tensors' names, types and shapes beforehand, and so where each lies in the stream. The sender holds
a few buckets of it, and reads the weights anew when it has to send them again. The receiver keeps the whole stream in
memory of its own until it is complete: a push arrives whole or not at all, and whoever receives it can go on working
with the old weights meanwhile. That costs one more copy of the model on each receiver; on GPUs, where that would hurt,
`nccl` loads as it receives.

Each bucket has a checksum, and the checksums of all buckets are compared by the client. Every wait has a deadline and
ends with a `TransportError` that names the tensor.
"""

import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import Any

import torch
import xxhash
from torch import Tensor

from rollout.errors import LostError

AHEAD = 2
"""Buckets that a receiver waits for at the same time."""
RING = 4
"""Buckets that a sender holds: one that fills, the others on their way."""
ALIGNMENT = 64
"""Bytes: every tensor starts at a multiple of it, so that a view of any type can be taken in place."""


class TransportError(LostError):
    """A push failed on the way; the message names the phase and the tensor."""


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """name: in the checkpoint. dtype: as torch names it ("bfloat16"). shape: whole, not this rank's share."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, dtype: torch.dtype, shape: Iterable[int]) -> "TensorMeta":
        """From what a tensor says of itself."""
        return cls(name, str(dtype).removeprefix("torch."), tuple(shape))

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each tensor lies. starts: [K] byte offsets. num_bytes: of the whole stream."""

    metas: tuple[TensorMeta, ...]
    starts: tuple[int, ...]
    num_bytes: int

    def name_at(self, offset: int) -> str:
        """The tensor that the byte at `offset` belongs to."""
        return [meta.name for meta, start in zip(self.metas, self.starts, strict=True) if start <= offset][-1]

    def views(self, stream: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor, as views of the `[num_bytes]` uint8 stream."""
        for meta, start in zip(self.metas, self.starts, strict=True):
            part = stream[start : start + meta.num_bytes]
            yield meta.name, part.view(getattr(torch, meta.dtype)).view(meta.shape)


def layout(metas: Iterable[TensorMeta]) -> Layout:
    """The stream of these tensors, in their order."""
    kept = tuple(metas)
    sizes = [-(-meta.num_bytes // ALIGNMENT) * ALIGNMENT for meta in kept]
    starts = tuple(accumulate(sizes, initial=0))
    return Layout(kept, starts[:-1], starts[-1])


class Group:
    """A gloo process group beside any other: rank 0 sends, all others receive. connect_s, transfer_s: deadlines of
    meeting and of one bucket. Raises `TransportError`.

    address: of this process's network interface. listener: rank 0's bound socket, where the others meet; a socket given
    by its owner listens on that interface alone, which torch's own would not.
    """

    def __init__(
        self,
        address: str,
        port: int,
        rank: int,
        num_ranks: int,
        connect_s: float,
        transfer_s: float,
        listener: socket.socket | None = None,
        master_address: str = "",
    ) -> None:
        from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

        timeout = timedelta(seconds=connect_s)
        try:
            self._store = TCPStore(
                master_address or address,
                port,
                num_ranks,
                is_master=listener is not None,
                timeout=timeout,
                wait_for_workers=False,
                multi_tenant=False,
                master_listen_fd=listener.detach() if listener is not None else None,
            )
            options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            options._devices = [ProcessGroupGloo.create_device(hostname=address)]
            options._timeout = timeout
            self._group = ProcessGroupGloo(PrefixStore("weights", self._store), rank, num_ranks, options)
        except RuntimeError as error:
            raise TransportError(f"connect: rank {rank} of {num_ranks} did not meet the others ({error})") from None
        self._transfer_timeout = timedelta(seconds=transfer_s)
        self.buckets: list[Tensor] = []

    def broadcast(self, bucket: Tensor) -> Any:
        """Start a broadcast from rank 0; returns the work to wait for."""
        options = torch.distributed.BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        options.timeout = self._transfer_timeout
        return self._group.broadcast([bucket], options)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Leave the group. Receivers that wait for this side then fail at once."""
        del self._group, self._store


def listen(address: str, port: int = 0) -> socket.socket:
    """A listening socket on `address`; port 0 is a free one."""
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(128)
    return listener


def send(group: Group, plan: Layout, weights: Iterable[tuple[str, Tensor]], bucket_bytes: int) -> list[int]:
    """Broadcast `weights` (in the order of `plan`) from rank 0; returns the checksum of each bucket.

    A bucket leaves as soon as it is full, while the next one fills: RING of them exist, whatever the model's size.
    `weights` is read to its end even when the network fails, because reading it may be a collective of several learner
    ranks. Raises `TransportError`.
    """
    with ThreadPoolExecutor(1) as hasher:
        ring = _Ring(group, plan, bucket_bytes, hasher)
        for (name, tensor), meta, start in zip(weights, plan.metas, plan.starts, strict=True):
            assert name == meta.name, f"the weights came as {name} where {meta.name} was announced"
            ring.put(start, tensor.detach().contiguous().view(-1).view(torch.uint8))
        return ring.end()


class _Ring:
    """Buckets that are filled, broadcast, and filled again. failure: what went wrong first; nothing is copied or sent
    any more then."""

    def __init__(self, group: Group, plan: Layout, bucket_bytes: int, hasher: ThreadPoolExecutor) -> None:
        self._group = group
        self._plan = plan
        self._hasher = hasher
        self._size = min(bucket_bytes, plan.num_bytes)
        # Kept from push to push: touching fresh memory would cost more than the copy.
        if [len(bucket) for bucket in group.buckets] != [self._size] * RING:
            group.buckets = [torch.zeros(self._size, dtype=torch.uint8) for _ in range(RING)]
        self._buckets = group.buckets
        self._begin = 0  # of the bucket that is being filled, in the stream
        self._pending: deque[tuple[Any, int]] = deque()
        self._checksums: list[Future[int]] = []
        self.failure: TransportError | None = None

    def put(self, at: int, content: Tensor) -> None:
        """The stream's bytes from `at` on, which lie behind all that came before."""
        while self.failure is None and len(content):
            if at >= self._begin + self._size:  # the gap between two tensors was the end of a bucket
                self._leave()
                continue
            room = content[: self._begin + self._size - at]
            self._bucket[at - self._begin :][: len(room)].copy_(room)
            at, content = at + len(room), content[len(room) :]
            if at == self._begin + self._size:
                self._leave()

    def end(self) -> list[int]:
        """Send the rest, and wait for everything."""
        while self.failure is None and self._begin < self._plan.num_bytes:
            self._leave()
        while self._pending:
            self._await_oldest()
        if self.failure is not None:
            raise self.failure
        return [checksum.result() for checksum in self._checksums]

    @property
    def _bucket(self) -> Tensor:
        bucket = self._buckets[self._begin // self._size % RING]
        return bucket[: self._plan.num_bytes - self._begin]

    def _leave(self) -> None:
        """Broadcast the bucket, and make room for the next one."""
        bucket, begin = self._bucket, self._begin
        self._begin += self._size
        try:
            self._pending.append((self._group.broadcast(bucket), begin))
        except RuntimeError as error:
            self.failure = _failed("send", error, self._plan, begin)
            return
        self._checksums.append(self._hasher.submit(checksum_of, bucket))
        if len(self._pending) == RING:
            self._await_oldest()
            self._checksums[len(self._checksums) - RING].result()

    def _await_oldest(self) -> None:
        work, begin = self._pending.popleft()
        failure = _wait(work, begin, self._plan, "send")
        self.failure = self.failure or failure


def receive(group: Group, plan: Layout, stream: Tensor, bucket_bytes: int) -> list[int]:
    """Fill `stream` ([num_bytes] uint8) from rank 0; returns the checksum of each bucket. Raises `TransportError`."""
    with ThreadPoolExecutor(1) as hasher:
        checksums = []
        pending: deque[tuple[Any, int]] = deque()
        for offset in [*range(0, plan.num_bytes, bucket_bytes), *[plan.num_bytes] * AHEAD]:
            if offset < plan.num_bytes:
                try:
                    pending.append((group.broadcast(stream[offset : offset + bucket_bytes]), offset))
                except RuntimeError as error:
                    raise _failed("receive", error, plan, offset) from None
            if pending and (len(pending) > AHEAD or offset == plan.num_bytes):
                work, arrived = pending.popleft()
                failure = _wait(work, arrived, plan, "receive")
                if failure is not None:
                    raise failure
                checksums.append(hasher.submit(checksum_of, stream[arrived : arrived + bucket_bytes]))
        return [checksum.result() for checksum in checksums]


def checksum_of(bucket: Tensor) -> int:
    """XXH3 of its bytes: as fast as memory, where a CRC would take as long as the wire."""
    return xxhash.xxh3_64_intdigest(bucket.numpy().data)


def combined(checksums: Sequence[int]) -> str:
    """One short text for all buckets' checksums and their order."""
    return xxhash.xxh3_64_hexdigest(b"".join(value.to_bytes(8, "big") for value in checksums))


def _wait(work: Any, offset: int, plan: Layout, phase: str) -> TransportError | None:
    try:
        work.wait()
    except RuntimeError as error:
        return _failed(phase, error, plan, offset)
    return None


def _failed(phase: str, error: Exception, plan: Layout, offset: int) -> TransportError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return TransportError(f"{phase}: at tensor {plan.name_at(offset)} ({reason})")

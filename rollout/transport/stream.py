"""A model's weights as one stream of bytes in buckets, broadcast over gloo from one sender to many receivers.

Both ends know the names, types and shapes of the tensors beforehand, and therefore their places in the stream and the
buckets. The sender holds a few buckets, and reads the weights again when it has to resend them. The receiver keeps the
whole stream in memory of its own until it is complete. A push therefore arrives completely or not at all, and the
receiver can use its old weights meanwhile. That costs another copy of the model on each receiver; on GPUs, where memory
is scarce, `nccl` loads while it receives.

Each bucket has a checksum, and the client compares the checksums of all buckets. Every wait has a deadline and ends
with a `TransportError` that names the tensor.
"""

import socket
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import xxhash
from torch import Tensor

from volley.rollout.errors import LostError

IN_FLIGHT = 8
"""Buckets in flight, each with a gloo thread on both ends; with fewer the network is idle in between."""
LARGE = 16
"""A tensor of at least a bucket's size divided by this shares no bucket: copying it takes longer than a broadcast."""
ALIGNMENT = 64
"""Bytes. Every tensor starts at a multiple of this, so that a view of any dtype is possible."""


class TransportError(LostError):
    """A transfer of weights failed; the message names the phase and the tensor."""


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """Name, type and shape of a tensor."""

    name: str
    """In the checkpoint."""
    dtype: str
    """As in torch ("bfloat16")."""
    shape: tuple[int, ...]
    """Of the whole tensor, not of a rank's shard."""

    @classmethod
    def of(cls, name: str, dtype: torch.dtype, shape: Iterable[int]) -> "TensorMeta":
        """From the attributes of a tensor."""
        return cls(name, str(dtype).removeprefix("torch."), tuple(shape))

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """The place of each tensor in the stream, and the division of the stream into buckets."""

    metas: tuple[TensorMeta, ...]
    """[K] tensors, in the order in which the sender reads them."""
    starts: tuple[int, ...]
    """[K] byte offset of each tensor."""
    num_bytes: int
    """Of the whole stream."""
    buckets: tuple[tuple[int, int], ...]
    """Begin and end of each bucket, in the order of sending: a bucket is sent once its last tensor was read."""

    def name_at(self, offset: int) -> str:
        """The name of the tensor that contains the byte at `offset`."""
        places = zip(self.metas, self.starts, strict=True)
        return next(meta.name for meta, start in places if start <= offset < start + meta.num_bytes)

    def views(self, stream: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors, as views of the `[num_bytes]` uint8 stream."""
        for meta, start in zip(self.metas, self.starts, strict=True):
            part = stream[start : start + meta.num_bytes]
            yield meta.name, part.view(getattr(torch, meta.dtype)).view(meta.shape)


def layout(metas: Iterable[TensorMeta], bucket_bytes: int) -> Layout:
    """The layout of these tensors in buckets of at most that size.

    Large tensors come first, each divided into buckets of its own. The others follow, several in a bucket."""
    kept = tuple(metas)
    is_large = [meta.num_bytes * LARGE >= bucket_bytes for meta in kept]
    starts, num_bytes = [0] * len(kept), 0
    buckets: list[tuple[int, int, int]] = []  # (index of its last tensor, begin, end)
    for i in sorted(range(len(kept)), key=lambda i: not is_large[i]):
        starts[i] = begin = num_bytes
        end = begin + kept[i].num_bytes
        num_bytes = -(-end // ALIGNMENT) * ALIGNMENT
        if is_large[i]:
            buckets += [(i, at, min(at + bucket_bytes, end)) for at in range(begin, end, bucket_bytes)]
        elif begin < end:
            fits = buckets and not is_large[buckets[-1][0]] and end - buckets[-1][1] <= bucket_bytes
            buckets.append((i, buckets.pop()[1] if fits else begin, end))
    in_order = sorted(buckets, key=lambda bucket: bucket[0])
    return Layout(kept, tuple(starts), num_bytes, tuple((begin, end) for _, begin, end in in_order))


class Group:
    """A gloo process group, independent of any other: rank 0 sends, all others receive. Raises `TransportError`.

    address: of this process's network interface. connect_s: time limit for forming the group. transfer_s: time limit
    for one bucket. listener: rank 0's bound socket, where the group meets; it listens on one interface only, while a
    socket created by torch would listen on all. master_address: of rank 0, if it is not `address`.
    """

    def __init__(
        self,
        address: str,
        port: int,
        rank: int,
        num_ranks: int,
        connect_s: float,
        transfer_s: float,
        *,
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
            options._threads = IN_FLIGHT
            self._group = ProcessGroupGloo(PrefixStore("weights", self._store), rank, num_ranks, options)
        except RuntimeError as error:
            raise TransportError(
                f"connect: rank {rank} of {num_ranks} could not connect to the others ({error})"
            ) from None
        self._transfer_timeout = timedelta(seconds=transfer_s)
        self.ring: list[Tensor] = []

    def broadcast(self, bucket: Tensor) -> Any:
        """Start a broadcast from rank 0; returns the handle to wait on."""
        options = torch.distributed.BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        options.timeout = self._transfer_timeout
        return self._group.broadcast([bucket], options)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Leave the group. Receivers that wait for this process fail at once."""
        del self._group, self._store


def listen(address: str, port: int = 0) -> socket.socket:
    """A listening socket on `address`; port 0 selects a free port."""
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(128)
    return listener


def send(group: Group, plan: Layout, weights: Iterable[tuple[str, Tensor]]) -> list[int]:
    """Broadcast `weights` (in the order of `plan`) from rank 0; returns the checksum of each bucket.

    A bucket is sent as soon as it is full, while the next one is filled. At most IN_FLIGHT buckets exist, whatever the
    size of the model. A large tensor on the CPU is not copied but sent from its own memory, so it must not change until
    this function returns. `weights` is read to its end even if the network fails, because reading may be a collective
    of several learner ranks. Raises `TransportError`.
    """
    with ThreadPoolExecutor(1) as hasher:
        outbox = _Outbox(group, plan, hasher)
        for (name, tensor), meta, start in zip(weights, plan.metas, plan.starts, strict=True):
            assert name == meta.name, f"weight {name} was read where {meta.name} was announced"
            outbox.put(start, tensor.detach().contiguous().view(-1).view(torch.uint8))
        return outbox.finish()


class _Outbox:
    """Fills buckets and broadcasts them."""

    def __init__(self, group: Group, plan: Layout, hasher: ThreadPoolExecutor) -> None:
        self._group = group
        self._plan = plan
        self._hasher = hasher
        self._places = sorted(plan.buckets)
        self._num_copied = 0
        # Kept for the next push: touching new memory would cost more than the copy.
        size = max((end - begin for begin, end in plan.buckets), default=0)
        if [len(bucket) for bucket in group.ring] != [size] * IN_FLIGHT:
            group.ring = [torch.empty(size, dtype=torch.uint8) for _ in range(IN_FLIGHT)]
        self._pending: deque[tuple[Any, int]] = deque()
        self._checksums: list[Future[int]] = []
        self.failure: TransportError | None = None
        """The first error; after it nothing more is copied or sent."""

    def put(self, at: int, content: Tensor) -> None:
        """Add the bytes of the tensor that starts at offset `at`."""
        while self.failure is None and len(content):
            begin, end = self._places[bisect_right(self._places, at, key=lambda place: place[0]) - 1]
            part, content = content[: end - at], content[end - at :]
            if len(part) == end - begin and part.is_cpu:
                self._broadcast(part, begin)
            else:
                bucket = self._group.ring[self._num_copied % IN_FLIGHT][: end - begin]
                bucket[at - begin :][: len(part)].copy_(part)
                if at + len(part) == end:
                    self._num_copied += 1
                    self._broadcast(bucket, begin)
            at += len(part)

    def finish(self) -> list[int]:
        """Wait for all buckets; returns their checksums. Raises `TransportError`."""
        while self._pending:
            self._await_oldest()
        if self.failure is not None:
            raise self.failure
        return [checksum.result() for checksum in self._checksums]

    def _broadcast(self, bucket: Tensor, begin: int) -> None:
        """Broadcast the bucket; returns when there is room for another."""
        try:
            self._pending.append((self._group.broadcast(bucket), begin))
        except RuntimeError as error:
            self.failure = _failed("send", error, self._plan, begin)
            return
        self._checksums.append(self._hasher.submit(checksum_of, bucket))
        if len(self._pending) == IN_FLIGHT:
            self._await_oldest()
            self._checksums[-IN_FLIGHT].result()

    def _await_oldest(self) -> None:
        work, begin = self._pending.popleft()
        failure = _wait(work, begin, self._plan, "send")
        self.failure = self.failure or failure


def receive(group: Group, plan: Layout, stream: Tensor) -> list[int]:
    """Fill `stream` ([num_bytes] uint8) from rank 0; returns the checksum of each bucket. Raises `TransportError`."""
    with ThreadPoolExecutor(1) as hasher:
        checksums: list[Future[int]] = []
        pending: deque[tuple[Any, int, Tensor]] = deque()

        def await_oldest() -> None:
            work, begin, bucket = pending.popleft()
            failure = _wait(work, begin, plan, "receive")
            if failure is not None:
                raise failure
            checksums.append(hasher.submit(checksum_of, bucket))

        for begin, end in plan.buckets:
            bucket = stream[begin:end]
            try:
                pending.append((group.broadcast(bucket), begin, bucket))
            except RuntimeError as error:
                raise _failed("receive", error, plan, begin) from None
            if len(pending) == IN_FLIGHT:
                await_oldest()
        while pending:
            await_oldest()
        return [checksum.result() for checksum in checksums]


def checksum_of(bucket: Tensor) -> int:
    """XXH3 of the bytes: it runs at memory speed, while a CRC would take as long as the network."""
    return xxhash.xxh3_64_intdigest(bucket.numpy().data)


def combined(checksums: Sequence[int]) -> str:
    """One short checksum of the checksums of all buckets, in order."""
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

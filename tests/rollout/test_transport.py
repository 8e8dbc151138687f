"""The stream over real gloo, in threads: bit-equal tensors, several receivers, dead and silent peers."""

import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.transport.stream import (
    RING,
    Group,
    TensorMeta,
    TransportError,
    checksum_of,
    combined,
    layout,
    listen,
    receive,
    send,
)

Tensors = list[tuple[str, torch.Tensor]]
SHAPES = [(3,), (1000, 37), (1,), (0, 5), (257, 129), ()]


def tensors(dtypes: list[torch.dtype]) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [(f"layer.{i}", made[i % len(made)].to(dtype)) for i, dtype in enumerate(dtypes * len(SHAPES))]


def metas(weights: Tensors) -> list[TensorMeta]:
    return [TensorMeta.of(name, tensor.dtype, tensor.shape) for name, tensor in weights]


def exchange(
    weights: Tensors,
    num_receivers: int,
    bucket_bytes: int,
    receiver: Callable[[Group, int], Any],
    deadline_s: float = 20,
) -> tuple[Any, list[Any]]:
    """What the sender returns or raises, and what each receiver does."""
    listener = listen("127.0.0.1")
    port = listener.getsockname()[1]
    results: list[Any] = [None] * num_receivers

    def receiving(index: int) -> None:
        group = Group("127.0.0.1", port, index + 1, num_receivers + 1, 10, deadline_s)
        try:
            results[index] = receiver(group, index)
        except TransportError as error:
            results[index] = error
        finally:
            group.close()

    threads = [threading.Thread(target=receiving, args=(index,)) for index in range(num_receivers)]
    for thread in threads:
        thread.start()
    plan = layout(metas(weights))
    group = Group("127.0.0.1", port, 0, num_receivers + 1, 10, deadline_s, listener)
    try:
        sent: Any = send(group, plan, weights, bucket_bytes)
    except TransportError as error:
        sent = error
    group.close()
    for thread in threads:
        thread.join()
    return sent, results


@pytest.mark.parametrize("num_receivers", [1, 3])
@pytest.mark.parametrize("bucket_bytes", [1000, 1 << 16, 1 << 30])
def test_every_receiver_gets_the_same_bits(num_receivers: int, bucket_bytes: int) -> None:
    weights = tensors([torch.bfloat16, torch.float32, torch.float16])
    plan = layout(metas(weights))

    def take(group: Group, index: int) -> Any:
        stream = torch.zeros(plan.num_bytes, dtype=torch.uint8)
        return receive(group, plan, stream, bucket_bytes), dict(plan.views(stream))

    sent, results = exchange(weights, num_receivers, bucket_bytes, take)
    for checksums, received in results:
        assert checksums == sent
        assert len(checksums) == -(-plan.num_bytes // bucket_bytes)
        for name, tensor in weights:
            assert received[name].dtype == tensor.dtype
            assert torch.equal(received[name], tensor)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["bfloat16", "float32", "uint8"]), st.lists(st.integers(0, 9), max_size=3))))
def test_tensors_lie_apart_aligned_and_in_order(kinds: list[tuple[str, list[int]]]) -> None:
    plan = layout(TensorMeta(str(i), dtype, tuple(shape)) for i, (dtype, shape) in enumerate(kinds))
    end = 0
    for meta, start in zip(plan.metas, plan.starts, strict=True):
        assert start % 64 == 0
        assert start >= end
        end = start + meta.num_bytes
        assert end <= plan.num_bytes


def test_the_sender_holds_a_few_buckets_and_one_tensor_whatever_the_size() -> None:
    """Of 8 MB in buckets of 100 kB: what is read and kept, and what is on its way."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    kept = [0]

    class Once(list):  # type: ignore[type-arg]
        """Made as they are read, as ZeRO-3 gathers them."""

        def __iter__(self) -> Any:
            for name, tensor in list.__iter__(self):
                made = tensor.clone()
                alive.add(made)
                kept[0] = max(kept[0], sum(each.nbytes for each in alive))
                yield name, made
                del made

    def broadcast(self: Group, bucket: torch.Tensor) -> Any:
        if threading.get_ident() == sender:
            addresses[bucket.data_ptr()] = max(bucket.nbytes, addresses.get(bucket.data_ptr(), 0))
        return original(self, bucket)

    addresses: dict[int, int] = {}
    original, sender = Group.broadcast, threading.get_ident()
    weights = Once((f"layer.{i}", torch.full((250 + i, 1000), float(i))) for i in range(8))
    plan = layout(metas(weights))

    def take(group: Group, index: int) -> Any:
        stream = torch.zeros(plan.num_bytes, dtype=torch.uint8)
        return receive(group, plan, stream, 100_000), dict(plan.views(stream))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Group, "broadcast", broadcast)
        sent, [(checksums, received)] = exchange(weights, 1, 100_000, take)
    assert checksums == sent
    assert all(torch.equal(received[name], tensor) for name, tensor in list.__iter__(weights))
    assert kept[0] <= 2 * weights[0][1].nbytes * 1.1
    assert sum(addresses.values()) <= RING * 100_000


def test_a_corrupted_bucket_shows_in_its_checksum() -> None:
    weights = tensors([torch.float32])
    plan = layout(metas(weights))

    def take(group: Group, index: int) -> list[int]:
        stream = torch.zeros(plan.num_bytes, dtype=torch.uint8)
        checksums = receive(group, plan, stream, 1 << 16)
        if index == 1:
            stream[70_000] ^= 1
            checksums = [checksum_of(stream[at : at + (1 << 16)]) for at in range(0, len(stream), 1 << 16)]
        return checksums

    sent, results = exchange(weights, 2, 1 << 16, take)
    assert combined(results[0]) == combined(sent)
    assert combined(results[1]) != combined(sent)
    assert [a == b for a, b in zip(results[1], sent, strict=True)].count(False) == 1


def test_a_peer_that_dies_raises_at_once_with_the_tensor() -> None:
    weights: Tensors = [(f"big.{i}", torch.ones(1 << 20)) for i in range(4)]
    plan = layout(metas(weights))

    def leave(group: Group, index: int) -> Any:
        stream = torch.zeros(plan.num_bytes, dtype=torch.uint8)
        group.broadcast(stream[: 1 << 22]).wait()
        return "left"

    started = time.monotonic()
    sent, results = exchange(weights, 1, 1 << 22, leave)
    assert results == ["left"]
    assert isinstance(sent, TransportError)
    assert "send: at tensor big." in str(sent)
    assert time.monotonic() - started < 15


def test_a_silent_peer_raises_at_the_deadline_and_the_weights_are_read_to_their_end() -> None:
    weights: Tensors = [(f"big.{i}", torch.ones(1 << 20)) for i in range(4)]
    read: list[str] = []

    class Reading(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            for name, tensor in weights:
                read.append(name)
                yield name, tensor

    def sleep(group: Group, index: int) -> str:
        time.sleep(3)
        return "slept"

    sent, _ = exchange(Reading(weights), 1, 1 << 20, sleep, deadline_s=1)
    assert isinstance(sent, TransportError)
    assert "big.0" in str(sent)
    assert read[-4:] == ["big.0", "big.1", "big.2", "big.3"]


def test_nobody_comes_to_the_meeting() -> None:
    listener = listen("127.0.0.1")
    with pytest.raises(TransportError, match="connect: rank 0 of 2 did not meet the others"):
        Group("127.0.0.1", listener.getsockname()[1], 0, 2, 1, 1, listener)


def test_the_meeting_place_listens_on_its_address_alone() -> None:
    listener = listen("127.0.0.1")
    port = listener.getsockname()[1]
    threading.Thread(target=lambda: Group("127.0.0.1", port, 1, 2, 10, 10), daemon=True).start()
    group = Group("127.0.0.1", port, 0, 2, 10, 10, listener)
    elsewhere = "127.0.0.2"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((elsewhere, port), 1)
    group.close()

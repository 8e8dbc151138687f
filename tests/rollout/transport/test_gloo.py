"""The stream over real gloo in threads: bit-equal tensors, several receivers, dead and silent peers."""

import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from volley.rollout.transport.stream import (
    IN_FLIGHT,
    LARGE,
    Group,
    Layout,
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
    plan: Layout,
    weights: Iterable[tuple[str, torch.Tensor]],
    num_receivers: int,
    receiver: Callable[[Group, int], Any],
    deadline_s: float = 20,
) -> tuple[Any, list[Any]]:
    """What the sender returns or raises, and the result of each receiver."""
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
    group = Group("127.0.0.1", port, 0, num_receivers + 1, 10, deadline_s, listener=listener)
    try:
        sent: Any = send(group, plan, weights)
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
    plan = layout(metas(weights), bucket_bytes)

    def take(group: Group, index: int) -> Any:
        stream = torch.zeros(plan.num_bytes, dtype=torch.uint8)
        return receive(group, plan, stream), dict(plan.views(stream))

    sent, results = exchange(plan, weights, num_receivers, take)
    for checksums, received in results:
        assert checksums == sent
        assert len(checksums) == len(plan.buckets)
        for name, tensor in weights:
            assert received[name].dtype == tensor.dtype
            assert torch.equal(received[name], tensor)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["bfloat16", "float32", "uint8"]), st.lists(st.integers(0, 9), max_size=3))),
    st.integers(1, 2000),
)
def test_tensors_are_aligned_and_disjoint_and_each_byte_is_in_one_bucket(
    kinds: list[tuple[str, list[int]]], bucket_bytes: int
) -> None:
    plan = layout((TensorMeta(str(i), dtype, tuple(shape)) for i, (dtype, shape) in enumerate(kinds)), bucket_bytes)
    places = [(start, start + meta.num_bytes, meta) for meta, start in zip(plan.metas, plan.starts, strict=True)]
    assert all(start % 64 == 0 and end <= plan.num_bytes for start, end, _ in places)
    for apart in (sorted((start, end) for start, end, _ in places), sorted(plan.buckets)):
        assert all(end <= start for (_, end), (start, _) in pairwise(apart))
    assert all(0 < end - begin <= bucket_bytes for begin, end in plan.buckets)
    completed = 0
    for start, end, meta in places:
        if not meta.num_bytes:
            continue
        numbers = [i for i, bucket in enumerate(plan.buckets) if bucket[0] < end and bucket[1] > start]
        own = [plan.buckets[i] for i in numbers]
        assert sum(min(bucket[1], end) - max(bucket[0], start) for bucket in own) == meta.num_bytes
        if meta.num_bytes * LARGE >= bucket_bytes:
            assert [plan.name_at(begin) for begin, _ in own] == [meta.name] * len(own)
            assert all(start <= begin < stop <= end for begin, stop in own)
        else:
            assert len(own) == 1
        # In reading order, the buckets that are complete by now come before those that are not.
        for number in numbers:
            if plan.buckets[number][1] <= end:
                assert number == completed
                completed += 1
    assert completed == len(plan.buckets)


@pytest.mark.parametrize(("rows", "num_tensors"), [(1000, 8), (1, 2000)], ids=["large tensors", "small tensors"])
def test_sender_holds_a_few_buckets_whatever_the_model_size(rows: int, num_tensors: int) -> None:
    """Some 8 MB in buckets of 100 kB: the tensors that are kept in memory, and the buckets that are copied to."""
    alive: dict[int, int] = {}
    kept, shapes = [0], [(rows + i % 6, 250) for i in range(num_tensors)]

    def weight(i: int) -> torch.Tensor:
        """Created when it is read, like a gathered weight of ZeRO-3. Its memory lives as long as the numpy array."""
        array = np.full(shapes[i], float(i), np.float32)
        alive[i] = array.nbytes
        weakref.finalize(array, alive.pop, i)
        kept[0] = max(kept[0], sum(alive.values()))
        return torch.from_numpy(array)

    def broadcast(self: Group, bucket: torch.Tensor) -> Any:
        if threading.get_ident() == sender and bucket.untyped_storage().nbytes() == ring_bytes:
            copied.add(bucket.data_ptr())
        return original(self, bucket)

    def each_weight() -> Iterator[tuple[str, torch.Tensor]]:
        for i in range(len(shapes)):
            yield f"layer.{i}", weight(i)

    copied: set[int] = set()
    original, sender = Group.broadcast, threading.get_ident()
    plan = layout((TensorMeta(f"layer.{i}", "float32", shape) for i, shape in enumerate(shapes)), 100_000)
    ring_bytes = max(end - begin for begin, end in plan.buckets)

    def take(group: Group, index: int) -> Any:
        stream = torch.zeros(plan.num_bytes, dtype=torch.uint8)
        return receive(group, plan, stream), dict(plan.views(stream))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Group, "broadcast", broadcast)
        sent, [(checksums, received)] = exchange(plan, each_weight(), 1, take)
    assert checksums == sent
    assert all(bool((received[f"layer.{i}"] == i).all()) for i in range(len(shapes)))
    # In addition to buckets in flight: the tensor that is being sent, and the one that is being read.
    largest = max(meta.num_bytes for meta in plan.metas)
    assert kept[0] <= IN_FLIGHT * 100_000 + 2 * largest
    assert len(copied) == (IN_FLIGHT if rows == 1 else 0)


def test_corrupted_bucket_changes_its_checksum() -> None:
    weights = tensors([torch.float32])
    plan = layout(metas(weights), 1 << 16)

    def take(group: Group, index: int) -> list[int]:
        stream = torch.zeros(plan.num_bytes, dtype=torch.uint8)
        checksums = receive(group, plan, stream)
        if index == 1:
            stream[70_000] ^= 1
            checksums = [checksum_of(stream[begin:end]) for begin, end in plan.buckets]
        return checksums

    sent, results = exchange(plan, weights, 2, take)
    assert combined(results[0]) == combined(sent)
    assert combined(results[1]) != combined(sent)
    assert [a == b for a, b in zip(results[1], sent, strict=True)].count(False) == 1


def test_dead_peer_raises_at_once_with_the_tensor() -> None:
    weights: Tensors = [(f"big.{i}", torch.ones(1 << 20)) for i in range(4)]
    plan = layout(metas(weights), 1 << 22)

    def leave(group: Group, index: int) -> Any:
        stream = torch.zeros(plan.num_bytes, dtype=torch.uint8)
        group.broadcast(stream[: 1 << 22]).wait()
        return "left"

    started = time.monotonic()
    sent, results = exchange(plan, weights, 1, leave)
    assert results == ["left"]
    assert isinstance(sent, TransportError)
    assert "send: at tensor big." in str(sent)
    assert time.monotonic() - started < 15


def test_silent_peer_raises_at_the_deadline_and_all_weights_are_read() -> None:
    weights: Tensors = [(f"big.{i}", torch.ones(1 << 20)) for i in range(4)]
    read: list[str] = []

    def reading() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            read.append(name)
            yield name, tensor

    def sleep(group: Group, index: int) -> str:
        time.sleep(3)
        return "slept"

    sent, _ = exchange(layout(metas(weights), 1 << 20), reading(), 1, sleep, deadline_s=1)
    assert isinstance(sent, TransportError)
    assert "big.0" in str(sent)
    assert read[-4:] == ["big.0", "big.1", "big.2", "big.3"]


def test_group_without_its_other_members_raises() -> None:
    listener = listen("127.0.0.1")
    with pytest.raises(TransportError, match="connect: rank 0 of 2 could not connect to the others"):
        Group("127.0.0.1", listener.getsockname()[1], 0, 2, 1, 1, listener=listener)


def test_group_listens_on_its_own_address_only() -> None:
    listener = listen("127.0.0.1")
    port = listener.getsockname()[1]
    threading.Thread(target=lambda: Group("127.0.0.1", port, 1, 2, 10, 10), daemon=True).start()
    group = Group("127.0.0.1", port, 0, 2, 10, 10, listener=listener)
    other_address = "127.0.0.2"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((other_address, port), 1)
    group.close()

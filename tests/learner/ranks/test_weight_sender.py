"""The sender's end of a push over real gloo with a test double of the ZeRO engine: gathering, resending, aborting."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from volley.learner.compute.model import PolicyModel
from volley.learner.ranks.weights import WeightSender
from volley.rollout.config import TransferConfig
from volley.rollout.transport.stream import Group, TransportError, combined, layout, receive

CONFIG = TransferConfig(bucket_bytes=1 << 16, connect_s=20, transfer_s=20)


class Sharded:
    """Test double of a `ZeroEngine` at stage 3.

    alive: parameters gathered now. most: the largest number gathered at any time. num_gathered: in total.
    """

    def __init__(self) -> None:
        self.module = PolicyModel.__new__(PolicyModel)
        nn.Module.__init__(self.module)
        self.module.causal_lm = nn.Sequential(*(nn.Linear(200, 200) for _ in range(6)))
        self.alive = self.most = self.num_gathered = 0

    @contextmanager
    def gathered(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        self.alive += len(parameters)
        self.num_gathered += len(parameters)
        self.most = max(self.most, self.alive)
        try:
            yield
        finally:
            self.alive -= len(parameters)


def push(sender: WeightSender, leaves_after: int | None = None) -> tuple[Any, Any]:
    """What the sender returns or raises, and the checksum and tensors of one receiver.

    leaves_after: the number of buckets after which the receiver leaves.
    """
    address, port = sender.open("gloo")
    plan, result = layout(sender.metas(), CONFIG.bucket_bytes), []

    def receiving() -> None:
        group = Group(address, port, 1, 2, 20, 20)
        stream = torch.zeros(plan.num_bytes, dtype=torch.uint8)
        if leaves_after is None:
            result.append((combined(receive(group, plan, stream)), dict(plan.views(stream))))
        else:
            for begin, end in plan.buckets[:leaves_after]:
                group.broadcast(stream[begin:end]).wait()
        group.close()

    thread = threading.Thread(target=receiving)
    thread.start()
    sender.connect(2, CONFIG)
    try:
        sent: Any = sender.send()
    except TransportError as error:
        sent = error
    sender.close()
    thread.join()
    return sent, result[0] if result else None


def test_modules_are_gathered_one_at_a_time_and_again_for_a_resend() -> None:
    zero = Sharded()
    sender = WeightSender(zero, 0, "127.0.0.1")  # type: ignore[arg-type]
    broken, _ = push(sender, leaves_after=2)
    assert isinstance(broken, TransportError)
    assert "send: at tensor " in str(broken)
    # The other ranks gather too, so all weights are read although the push failed.
    assert (zero.num_gathered, zero.alive) == (12, 0)
    sent, (checksum, received) = push(sender)
    assert (sent, zero.num_gathered) == (checksum, 24)
    assert zero.most == 2
    for name, parameter in zero.module.causal_lm.named_parameters():
        assert torch.equal(received[name], parameter.detach()), name
    assert sender.position() == "5.bias"


def test_aborted_send_fails_whatever_its_calls_return() -> None:
    """Over nccl the calls of an aborted communicator return normally. The other ranks must not be left in a gather."""

    class Aborted:
        def __init__(self, fails: bool) -> None:
            self.fails = fails

        def send_weights(self) -> None:
            next(iter(sender._stream))
            sender.abort()
            if self.fails:
                raise RuntimeError("NCCL error: remote process exited")

        def abort(self) -> None:
            aborts.append("aborted")

    for fails, message in (True, r"send: at tensor 0\.weight \(NCCL error"), (False, "send: aborted before"):
        zero, aborts = Sharded(), list[str]()
        sender = WeightSender(zero, 0, "127.0.0.1")  # type: ignore[arg-type]
        sender._trainer, sender._transport = Aborted(fails), "nccl"
        with pytest.raises(TransportError, match=message):
            sender.send()
        assert aborts == ["aborted"]
        assert zero.num_gathered == 12

"""The learner's end of a push over real gloo, with a ZeRO engine's double: what is gathered, resent, and aborted."""

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
    """Stands for a `ZeroEngine` at stage 3. alive: parameters gathered now; most: at any time; passes: of reading."""

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
    """What the sender returns or raises, and the checksum and tensors of one receiver. leaves_after: buckets until the
    receiver is gone."""
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


def test_one_module_at_a_time_is_gathered_and_a_resend_gathers_again() -> None:
    zero = Sharded()
    sender = WeightSender(zero, 0, "127.0.0.1")  # type: ignore[arg-type]
    broken, _ = push(sender, leaves_after=2)
    assert isinstance(broken, TransportError)
    assert "send: at tensor " in str(broken)
    # Other ranks gather along, so reading went to the end all the same.
    assert (zero.num_gathered, zero.alive) == (12, 0)
    sent, (checksum, received) = push(sender)
    assert (sent, zero.num_gathered) == (checksum, 24)
    assert zero.most == 2
    for name, parameter in zero.module.causal_lm.named_parameters():
        assert torch.equal(received[name], parameter.detach()), name
    assert sender.position() == "5.bias"


def test_a_sender_that_was_aborted_failed_whatever_came_back() -> None:
    """As over nccl, where the calls of an aborted communicator return; the other ranks are not left in a gather."""

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

    for fails, message in (True, r"send: at tensor 0\.weight \(NCCL error"), (False, "send: the group was left"):
        zero, aborts = Sharded(), list[str]()
        sender = WeightSender(zero, 0, "127.0.0.1")  # type: ignore[arg-type]
        sender._trainer, sender._transport = Aborted(fails), "nccl"
        with pytest.raises(TransportError, match=message):
            sender.send()
        assert aborts == ["aborted"]
        assert zero.num_gathered == 12

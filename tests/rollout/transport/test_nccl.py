"""What Volley adds to vLLM's nccl transfer, with a test double of the communicator, because it needs GPUs."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from volley.rollout.transport import nccl
from volley.rollout.transport.nccl import NcclEngine, Watchdog, abort
from volley.rollout.transport.stream import TransportError


class Communicator:
    """Test double whose broadcasts end when it is aborted. aborted: the handle, and whether it was disabled then."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.disabled = False
        self.device = SimpleNamespace(index=0)
        self.comm = "the communicator"
        self.nccl = SimpleNamespace(ncclCommAbort=self.on_abort)
        self.aborted: list[tuple[str, bool]] = []

    def on_abort(self, comm: str) -> None:
        self.aborted.append((comm, self.disabled))
        self.ended.set()


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def __init__(self, index: int) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(torch.accelerator, "device_index", Nothing)


def test_communicator_is_disabled_before_it_is_aborted() -> None:
    communicator = Communicator()
    abort(communicator)
    assert communicator.aborted == [("the communicator", True)]


@pytest.mark.parametrize("hangs", [False, True], ids=["all arrive", "the sender dies"])
def test_engine_leaves_a_broadcast_that_does_not_end(monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    loaded: list[str] = []

    def receive(self: Any, info: Any) -> None:
        for name in ("a", "b"):
            self.model.load_weights([(name, torch.zeros(1))])
            if hangs:
                assert self.model_update_group.ended.wait(20)

    monkeypatch.setattr(nccl.NCCLWeightTransferEngine, "receive_weights", receive)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=lambda: None))
    engine = object.__new__(NcclEngine)
    engine.model = model = SimpleNamespace(load_weights=lambda weights: loaded.extend(name for name, _ in weights))
    engine.model_update_group = communicator = Communicator()
    engine._transfer_s = 0.2 if hangs else 60
    if hangs:
        with pytest.raises(TransportError, match=r"receive: at tensor b \(nothing received for 0.2 s\)"):
            engine.receive_weights(None)
    else:
        engine.receive_weights(None)
    assert loaded == (["a"] if hangs else ["a", "b"])
    assert len(communicator.aborted) == hangs
    assert engine.model is model


def test_watchdog_does_not_abort_while_there_is_progress() -> None:
    communicator = Communicator()
    with Watchdog(communicator, 2) as watchdog:
        for i in range(25):
            assert not communicator.ended.wait(0.1)
            watchdog.progress(str(i))
    assert communicator.aborted == []

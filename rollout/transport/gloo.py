"""vLLM's weight-transfer API over gloo, for CPUs: the engine's end and the learner's end.

The engine receives in a thread and keeps generating with its old weights; `finish_weight_update` then loads what was
received. An update has two chunks. The first announces the tensors and starts the thread. The last waits for the thread
and raises if the stream broke, which closes vLLM's update session and leaves the old weights unchanged.
"""

import socket
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from volley.rollout.transport.load import load_into_model
from volley.rollout.transport.stream import Group, Layout, TensorMeta, TransportError, combined, layout, receive, send


@dataclass(kw_only=True)
class GlooInitInfo(WeightTransferInitInfo):
    """What vLLM's worker needs to join the group; see `JoinRequest`."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    address: str
    """Of this engine's machine."""
    bucket_bytes: int
    connect_s: float
    transfer_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """A chunk of an update: the announcement of all tensors, or, with `last`, the wait for them."""

    names: list[str] = field(default_factory=list)
    dtype_names: list[str] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    last: bool = False


class GlooEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """The engine's end, in vLLM's worker."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    defers_processing = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._group: Group | None = None
        self._receiving: Future[list[int]] | None = None
        self._plan: Layout | None = None
        self._stream = torch.empty(0, dtype=torch.uint8)
        self.checksum = ""
        """Of the stream that was received last."""

    def init_transfer_engine(self, info: GlooInitInfo) -> None:
        self._close_group()
        self._info = info
        self._group = Group(
            info.address,
            info.master_port,
            info.rank_offset + self.parallel_config.rank,
            info.world_size,
            info.connect_s,
            info.transfer_s,
            master_address=info.master_address,
        )

    def start_weight_update(self) -> None:
        """Does nothing: the old weights serve until the new ones have arrived."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As in vLLM, without synchronizing an accelerator, which a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, info: GlooUpdateInfo) -> None:
        if info.last:
            assert self._receiving is not None
            self.checksum = combined(self._receiving.result())
            return
        if self._group is None:
            raise TransportError("receive: the engine is not connected")
        metas = zip(info.names, info.dtype_names, info.shapes, strict=True)
        tensors = (TensorMeta(name, dtype, tuple(shape)) for name, dtype, shape in metas)
        self._plan = layout(tensors, self._info.bucket_bytes)
        if self._stream.numel() != self._plan.num_bytes:
            self._stream = torch.empty(self._plan.num_bytes, dtype=torch.uint8)
        self.checksum = ""
        self._receiving = self._thread.submit(receive, self._group, self._plan, self._stream)

    @property
    def is_receiving(self) -> bool:
        return self._receiving is not None and not self._receiving.done()

    def finish_weight_update(self) -> None:
        assert self._plan is not None
        load_into_model(self.vllm_config, self.model, self._plan.views(self._stream))

    def shutdown(self) -> None:
        self._close_group()

    def _close_group(self) -> None:
        if self._group is not None:
            self._group.close()
        self._group = None


@dataclass(kw_only=True)
class GlooTrainerInfo(TrainerInitInfo):
    """What the learner's end needs to form the group."""

    backend: ClassVar[str] = "gloo"

    address: str
    listener: socket.socket | None
    """Rank 0's socket, where the group meets (see `stream.listen`)."""
    world_size: int
    bucket_bytes: int
    connect_s: float
    transfer_s: float


class GlooTrainer(TrainerWeightTransferEngine[GlooTrainerInfo]):
    """The learner's end. Rank 0 sends; the other ranks only read the weights, which gathers them under ZeRO-3."""

    init_info_cls = GlooTrainerInfo

    @classmethod
    def trainer_init(cls, init_info: GlooTrainerInfo, *, client: Any, source: Any = None) -> "GlooTrainer":
        trainer = cls(client=client, source=source, is_sender=init_info.is_sender)
        trainer.checksum = ""
        tensors = (TensorMeta.of(m.name, m.dtype, m.shape) for m in source.metadata())
        trainer._plan = layout(tensors, init_info.bucket_bytes)
        if init_info.is_sender:
            listener = init_info.listener
            assert listener is not None
            trainer._group = Group(
                init_info.address,
                listener.getsockname()[1],
                0,
                init_info.world_size,
                init_info.connect_s,
                init_info.transfer_s,
                listener=listener,
            )
        return trainer

    checksum: str
    """Of the stream that was sent last."""
    _plan: Layout
    _group: Group | None = None

    def send_weights(self) -> None:
        if not self.is_sender:
            for _ in self.source:
                pass
            return
        assert self._group is not None
        self.checksum = combined(send(self._group, self._plan, self.source))

    def shutdown(self) -> None:
        if self._group is not None:
            self._group.close()
        self._group = None

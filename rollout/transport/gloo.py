"""vLLM's weight-transfer API over gloo, for CPUs: the engine's side and the learner's side.

The engine receives in a thread and goes on generating under its old weights; `finish_weight_update` then loads what has
arrived. An update is two chunks: the first announces the tensors and starts the thread, the last waits for it, and
raises if the stream broke (which leaves vLLM's update session closed and the old weights untouched).
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

from volley.rollout.transport.stream import Group, Layout, TensorMeta, TransportError, combined, layout, receive, send


@dataclass(kw_only=True)
class GlooInitInfo(WeightTransferInitInfo):
    """master_address, master_port: where the group meets. rank_offset: of this engine's first worker."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    address: str
    bucket_bytes: int
    connect_s: float
    transfer_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """A chunk of an update: the announcement of all tensors, or (last) the wait for them."""

    names: list[str] = field(default_factory=list)
    dtype_names: list[str] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    last: bool = False


class GlooEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """In vLLM's worker. checksum: of the stream that was received last."""

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
        """Nothing yet: the old weights serve until the new ones are here."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As vLLM's, without waiting for an accelerator that a CPU has not."""
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
        from volley.rollout.engines.vllm import load_into_model

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
    """listener: the sender's socket, on which the others meet it (see `stream.listen`)."""

    backend: ClassVar[str] = "gloo"

    address: str
    listener: socket.socket | None
    world_size: int
    bucket_bytes: int
    connect_s: float
    transfer_s: float


class GlooTrainer(TrainerWeightTransferEngine[GlooTrainerInfo]):
    """In the learner. Rank 0 sends; the other ranks only read the weights, which under ZeRO-3 gathers them.
    checksum: of the stream that was sent last."""

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

"""vLLM's nccl weight transfer with deadlines: without them, a dead member leaves all others in an endless broadcast.

The push client aborts the learner's end. An engine's end has its own watchdog, because its process does nothing else
during a transfer. Both abort the communicator (`ncclCommAbort`). The pending calls then return with wrong content, so
the transfer counts as failed; a new group and a full push follow.

Written against the sources of vLLM 0.32 (`PyNcclCommunicator`, `StatelessProcessGroup`, `nccl_engine`,
`packed_tensor`). Its tests use a test double of the communicator and never run on GPUs. Left out: a deadline on
`ncclCommInitRank`, which cannot be aborted before it returns; NCCL ends it if the process of a member is gone.
"""

import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from vllm.distributed.weight_transfer.base import TrainerInitInfo
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)

from volley.rollout.transport.stream import TransportError


@dataclass(kw_only=True)
class NcclInitInfo(NCCLWeightTransferInitInfo):
    """What vLLM's worker needs to join the group; see `JoinRequest`."""

    connect_s: float
    """Time limit for forming the group."""
    transfer_s: float
    """Time limit for one packed buffer (1 GiB)."""


class NcclEngine(NCCLWeightTransferEngine):
    """The engine's end, in vLLM's worker."""

    init_info_cls = NcclInitInfo
    model: Any

    def init_transfer_engine(self, info: NcclInitInfo) -> None:
        self.shutdown()
        self.packed = info.packed
        self._transfer_s = info.transfer_s
        parallel = self.parallel_config
        rank = info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        assert info.master_address is not None
        assert info.master_port is not None
        self.model_update_group = meet(
            info.master_address, info.master_port, rank, info.world_size, info.connect_s, None
        )

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        if self.model_update_group is None:
            raise TransportError("receive: the engine is not connected")
        with Watchdog(self.model_update_group, self._transfer_s) as watchdog:
            model, self.model = self.model, _WatchedModel(self.model, watchdog)
            try:
                super().receive_weights(update_info)
                torch.cuda.current_stream().synchronize()
            finally:
                self.model = model
        watchdog.check()


class Watchdog:
    """While entered, aborts a communicator when `progress` has not been called for `deadline_s`."""

    def __init__(self, communicator: Any, deadline_s: float) -> None:
        self._communicator = communicator
        self._deadline_s = deadline_s
        self._progress_at = time.monotonic()
        self._at = ""
        self._left = threading.Event()
        self._is_aborted = False

    def __enter__(self) -> "Watchdog":
        self._thread = threading.Thread(target=self._run, name="nccl watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._left.set()
        self._thread.join()

    def progress(self, at: str) -> None:
        """Tensor `at` is being received. Raises `TransportError` if the communicator was aborted."""
        self._progress_at, self._at = time.monotonic(), at
        self.check()

    def check(self) -> None:
        """Raises `TransportError` if the communicator was aborted: data received after that is wrong."""
        if self._is_aborted:
            raise TransportError(f"receive: at tensor {self._at} (nothing received for {self._deadline_s:g} s)")

    def _run(self) -> None:
        while not self._left.wait(max(0.0, self._progress_at + self._deadline_s - time.monotonic())):
            if time.monotonic() - self._progress_at >= self._deadline_s:
                self._is_aborted = True
                abort(self._communicator)
                return


class _WatchedModel:
    """A model that reports progress to a watchdog when it loads tensors."""

    def __init__(self, model: Any, watchdog: Watchdog) -> None:
        self._model = model
        self._watchdog = watchdog

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        kept = list(weights)
        self._watchdog.progress(kept[0][0])
        return self._model.load_weights(kept)


@dataclass(kw_only=True)
class NcclTrainerInfo(TrainerInitInfo):
    """What the learner's end needs to form the group."""

    backend: ClassVar[str] = "nccl"

    master_address: str
    master_port: int
    world_size: int
    listener: socket.socket | None
    """Rank 0's socket at master_address and master_port."""
    connect_s: float


class NcclTrainer(NCCLTrainerWeightTransferEngine):
    """The learner's end; rank 0 sends."""

    init_info_cls = NcclTrainerInfo

    @classmethod
    def trainer_init(cls, init_info: Any, *, client: Any, source: Any = None) -> "NcclTrainer":
        trainer = cls(client=client, source=source, is_sender=init_info.is_sender)
        if init_info.is_sender:
            where = init_info.master_address, init_info.master_port, 0, init_info.world_size
            trainer.model_update_group = meet(*where, init_info.connect_s, init_info.listener)
        return trainer

    def abort(self) -> None:
        """End a broadcast under way; called from another thread."""
        if self.model_update_group is not None:
            abort(self.model_update_group)


def meet(address: str, port: int, rank: int, num_ranks: int, connect_s: float, listener: socket.socket | None) -> Any:
    """A communicator of all ranks, like vLLM's `stateless_init_process_group`, with a deadline.

    Raises `TransportError`."""
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.utils import StatelessProcessGroup
    from vllm.utils.nccl import unpinned_nccl_env

    try:
        group = StatelessProcessGroup.create(
            address, port, rank, num_ranks, store_timeout=max(1, round(connect_s)), listen_socket=listener
        )
        with unpinned_nccl_env():
            return PyNcclCommunicator(group, device=torch.accelerator.current_device_index())
    except RuntimeError as error:
        raise TransportError(f"connect: rank {rank} of {num_ranks} could not connect to the others ({error})") from None


def abort(communicator: Any) -> None:
    """End all pending calls of a communicator for good.

    Unlike its `destroy`, this disables the communicator first, so that further calls return at once instead of using
    freed memory."""
    communicator.disabled = True
    with torch.accelerator.device_index(communicator.device.index):
        communicator.nccl.ncclCommAbort(communicator.comm)

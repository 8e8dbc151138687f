"""vLLM's nccl weight transfer with deadlines: a member that dies leaves all others in a broadcast that never ends.

The learner's side is told to `abort` by whoever drives the push; an engine's side has a watch of its own, because its
process does nothing else meanwhile. Both abort the communicator (`ncclCommAbort`), after which what was waited for
returns with wrong content, and so counts as failed. A new group and a full push follow.

Written against vLLM 0.32's sources (`PyNcclCommunicator`, `StatelessProcessGroup`, `nccl_engine`, `packed_tensor`) and
never run on GPUs by its tests, which put a communicator's double in its place. Left out: a deadline on
`ncclCommInitRank` itself, which nothing can abort before it returns; NCCL ends it where a member's process is gone.
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
    """connect_s: for all to meet. transfer_s: for one packed buffer (1 GiB)."""

    connect_s: float
    transfer_s: float


class NcclEngine(NCCLWeightTransferEngine):
    """In vLLM's worker."""

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
        with Watch(self.model_update_group, self._transfer_s) as watch:
            model, self.model = self.model, _Watched(self.model, watch)
            try:
                super().receive_weights(update_info)
                torch.cuda.current_stream().synchronize()
            finally:
                self.model = model
        watch.check()


class Watch:
    """Aborts a communicator when `moved` has not been called for `deadline_s`, while it is entered."""

    def __init__(self, communicator: Any, deadline_s: float) -> None:
        self._communicator = communicator
        self._deadline_s = deadline_s
        self._moved_at = time.monotonic()
        self._at = ""
        self._left = threading.Event()
        self._is_aborted = False

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._look, name="nccl watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._left.set()
        self._thread.join()

    def moved(self, at: str) -> None:
        """The tensor `at` comes next, or now. Raises `TransportError` once it is too late."""
        self._moved_at, self._at = time.monotonic(), at
        self.check()

    def check(self) -> None:
        """Raises `TransportError` where the communicator was aborted: what came after that is not what was sent."""
        if self._is_aborted:
            raise TransportError(f"receive: at tensor {self._at} (nothing came for {self._deadline_s:g} s)")

    def _look(self) -> None:
        while not self._left.wait(max(0.0, self._moved_at + self._deadline_s - time.monotonic())):
            if time.monotonic() - self._moved_at >= self._deadline_s:
                self._is_aborted = True
                abort(self._communicator)
                return


class _Watched:
    """A model that says when it loads something."""

    def __init__(self, model: Any, watch: Watch) -> None:
        self._model = model
        self._watch = watch

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        kept = list(weights)
        self._watch.moved(kept[0][0])
        return self._model.load_weights(kept)


@dataclass(kw_only=True)
class NcclTrainerInfo(TrainerInitInfo):
    """listener: rank 0's bound socket at master_address and master_port."""

    backend: ClassVar[str] = "nccl"

    master_address: str
    master_port: int
    world_size: int
    listener: socket.socket | None
    connect_s: float


class NcclTrainer(NCCLTrainerWeightTransferEngine):
    """In the learner; rank 0 sends."""

    init_info_cls = NcclTrainerInfo

    @classmethod
    def trainer_init(cls, init_info: Any, *, client: Any, source: Any = None) -> "NcclTrainer":
        trainer = cls(client=client, source=source, is_sender=init_info.is_sender)
        if init_info.is_sender:
            where = init_info.master_address, init_info.master_port, 0, init_info.world_size
            trainer.model_update_group = meet(*where, init_info.connect_s, init_info.listener)
        return trainer

    def abort(self) -> None:
        """Have a broadcast under way end, from another thread."""
        if self.model_update_group is not None:
            abort(self.model_update_group)


def meet(address: str, port: int, rank: int, num_ranks: int, connect_s: float, listener: socket.socket | None) -> Any:
    """A communicator of all ranks, as vLLM's `stateless_init_process_group` makes it, with a deadline. Raises
    `TransportError`."""
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
        raise TransportError(f"connect: rank {rank} of {num_ranks} did not meet the others ({error})") from None


def abort(communicator: Any) -> None:
    """End whatever waits in a communicator, and use it no more. As its `destroy`, which does not keep a loop that was
    woken up by it from broadcasting on freed memory: a communicator that is disabled first returns at once."""
    communicator.disabled = True
    with torch.accelerator.device_index(communicator.device.index):
        communicator.nccl.ncclCommAbort(communicator.comm)

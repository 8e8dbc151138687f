"""Send the policy's weights: a stream of tensors with their names in a Hugging Face checkpoint.

Tied weights are sent once, under the name of the input embedding, as in checkpoints. Under ZeRO-3 the parameters of one
module are gathered at a time, never the whole model.
"""

import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from volley.learner.compute.model import PolicyModel
from volley.learner.ranks.zero import ZeroEngine
from volley.rollout.config import TransferConfig
from volley.rollout.transport.protocol import SenderEnd
from volley.rollout.transport.stream import TensorMeta, TransportError, listen

PREFIX = "causal_lm."


def named_weights(zero: ZeroEngine) -> Iterator[tuple[str, Tensor]]:
    """All weights by name. A tensor keeps its values until the next update, also when it is no longer gathered."""
    for module_name, parameters in _by_module(zero):
        with zero.gathered([parameter for _, parameter in parameters]):
            for name, parameter in parameters:
                yield f"{module_name}.{name}".removeprefix(PREFIX), parameter.detach()


def state_dict(zero: ZeroEngine) -> dict[str, Tensor]:
    """A copy of all weights in host memory, for export."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in named_weights(zero)}


def _by_module(zero: ZeroEngine) -> Iterator[tuple[str, list[tuple[str, nn.Parameter]]]]:
    model = zero.module
    assert isinstance(model, PolicyModel)
    seen: set[int] = set()
    # Without the value head, which engines and checkpoints of language models do not have.
    for module_name, module in model.causal_lm.named_modules(prefix="causal_lm"):
        own = [(name, parameter) for name, parameter in module.named_parameters(recurse=False)]
        fresh = [(name, parameter) for name, parameter in own if id(parameter) not in seen]
        seen.update(id(parameter) for _, parameter in fresh)
        if fresh:
            yield module_name, fresh


class _Meta(NamedTuple):
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class WeightStream:
    """The weights as vLLM's `WeightSource`: metadata without gathering, tensors read again for every push."""

    def __init__(self, zero: ZeroEngine) -> None:
        self._zero = zero
        self._rest: Iterator[tuple[str, Tensor]] = iter(())
        self.position = ""
        """Name of the tensor that was read last."""

    def metadata(self) -> list[_Meta]:
        """Name, type and whole shape of each tensor, in the order of reading."""
        return [
            # ZeRO-3 replaces each parameter by an empty tensor that has the full shape as an attribute.
            _Meta(f"{module}.{name}".removeprefix(PREFIX), p.dtype, tuple(getattr(p, "ds_shape", p.shape)))
            for module, parameters in _by_module(self._zero)
            for name, p in parameters
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._rest = named_weights(self._zero)
        for name, tensor in self._rest:
            self.position = name
            yield name, tensor

    def finish(self) -> None:
        """Read the tensors that the last reader left: gathering takes all ranks, and the other ranks continue."""
        for _ in self._rest:
            pass


class WeightSender(SenderEnd):
    """The sender's end of a push on one learner rank.

    Rank 0 sends; the other ranks read along, because gathering a weight takes all ranks. It uses the trainer side of
    vLLM's weight-transfer API. That API's client for the engines does nothing here, because the push client
    (`volley.rollout.transport.client`) calls the engines itself.
    """

    def __init__(self, zero: ZeroEngine, rank: int, address: str) -> None:
        """address: of this machine, where engines connect."""
        self._stream = WeightStream(zero)
        self._rank = rank
        self._own_address = address
        self._is_aborted = False
        self._trainer: Any = None
        self._listener: socket.socket | None = None
        self._transport = ""
        self._address, self._port = "", 0

    def metas(self) -> list[TensorMeta]:
        """As `SenderEnd.metas`."""
        return [TensorMeta.of(*meta) for meta in self._stream.metadata()]

    def open(self, transport: str) -> tuple[str, int]:
        """As `SenderEnd.open`; only rank 0 opens a port."""
        self.close()
        self._transport = transport
        self._is_aborted = False
        if self._rank == 0:
            self._listener = listen(self._own_address)
            self._address, self._port = self._listener.getsockname()[:2]
        return self._address, self._port

    def connect(self, world_size: int, config: TransferConfig) -> None:
        """As `SenderEnd.connect`."""
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        from volley.rollout.transport.register import register

        register()
        listener, self._listener = self._listener, None
        if self._transport == "gloo":
            from volley.rollout.transport.gloo import GlooTrainerInfo

            info: Any = GlooTrainerInfo(
                address=self._address,
                listener=listener,
                world_size=world_size,
                bucket_bytes=config.bucket_bytes,
                connect_s=config.connect_s,
                transfer_s=config.transfer_s,
                rank=self._rank,
            )
        else:
            from volley.rollout.transport.nccl import NcclTrainerInfo

            info = NcclTrainerInfo(
                master_address=self._address,
                master_port=self._port,
                world_size=world_size,
                listener=listener,
                connect_s=config.connect_s,
                rank=self._rank,
            )
        self._trainer = WeightTransferTrainerFactory.trainer_init(info, client=_NoEngineClient(), source=self._stream)

    def send(self) -> str:
        """As `SenderEnd.send`."""
        if self._trainer is None:
            raise TransportError("send: the group is not connected")
        self._stream.position = ""
        try:
            self._trainer.send_weights()
        except RuntimeError as error:
            self._stream.finish()
            raise TransportError(f"send: at tensor {self._stream.position} ({error})") from None
        if self._is_aborted:
            self._stream.finish()
            raise TransportError("send: aborted before all engines had received everything")
        return str(getattr(self._trainer, "checksum", ""))

    def position(self) -> str:
        """As `SenderEnd.position`; called from another thread than `send`."""
        return self._stream.position

    def abort(self) -> None:
        """As `SenderEnd.abort`; called from another thread than `send`.

        Over nccl this aborts the communicator. Over gloo a `send` ends by the deadline of its current bucket.
        """
        self._is_aborted = True
        if self._trainer is not None and self._transport == "nccl":
            self._trainer.abort()

    def close(self) -> None:
        """As `SenderEnd.close`."""
        if self._listener is not None:
            self._listener.close()
        if self._trainer is not None:
            self._trainer.shutdown()
        self._trainer = self._listener = None


class _NoEngineClient:
    """Takes the place of the client by which vLLM's trainer calls the engines."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...
    def start_weight_update(self) -> None: ...
    def update_weights(self, update_info: Any) -> None: ...
    def finish_weight_update(self, weight_version: str | None = None) -> None: ...

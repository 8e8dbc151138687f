"""DeepSpeed behind a narrow interface: start the process group, wrap a model, run the optimizer, save and load state.

This is the only module that imports deepspeed. Loss scaling: the caller passes losses that are already divided by the
global count, so micro-batches add up. DeepSpeed averages gradients over ranks, so the caller multiplies by the number
of ranks. Optimizer state is saved in DeepSpeed's own files, and loaded with an allow-list of classes instead of
unrestricted unpickling.
"""

import contextlib
import io
import logging
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from volley.learner.compute.model import ValueHead
from volley.learner.config import LearnerConfig
from volley.learner.ranks.spec import RankPlace
from volley.rollout.transport.stream import listen


def start_process_group(place: RankPlace, timeout_s: float = 1800.0) -> None:
    """Join DeepSpeed's process group (gloo on CPUs, nccl on GPUs), whose store listens on rank 0's address.

    The store listens on that address alone; torch's own would listen on all interfaces. With a single rank no port is
    opened.
    """
    if torch.distributed.is_initialized():
        return
    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    backend = "nccl" if has_gpu else "gloo"
    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.num_ranks), LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR=place.address, MASTER_PORT=str(place.port))
    store: Any = torch.distributed.HashStore()
    if place.num_ranks > 1:
        listener = place.listener
        if place.rank == 0 and listener is None:
            listener = listen(place.address, place.port)
        store = torch.distributed.TCPStore(
            place.address,
            place.port,
            place.num_ranks,
            is_master=place.rank == 0,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=listener.detach() if listener is not None else None,
        )
    torch.distributed.init_process_group(
        backend, store=store, rank=place.rank, world_size=place.num_ranks, timeout=timedelta(seconds=timeout_s)
    )
    # DeepSpeed's shared-memory collectives are for inference only. Compiling and loading them takes a lock file. A
    # killed process leaves it behind, and every later process would wait for it forever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


def free_port() -> int:
    """A TCP port on the loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def zero_config(config: LearnerConfig) -> dict[str, Any]:
    """The DeepSpeed configuration of a learner."""
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.cpu_offload and config.zero_stage:
        zero["offload_optimizer"] = {"device": "cpu"}
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }
    if config.dtype == "bf16":
        result["bf16"] = {"enabled": True}
        if config.zero_stage == 1 and not config.cpu_offload:
            result["data_types"] = {"grad_accum_dtype": "fp32"}
    return result


class ZeroEngine:
    """One rank's model and optimizer under ZeRO."""

    def __init__(self, model: nn.Module, config: LearnerConfig, critic_lr: float = 0.0) -> None:
        """critic_lr: peak learning rate of the value head, if the model has one."""
        import deepspeed

        self._stage = config.zero_stage
        self._is_plain = config.zero_stage == 0 and config.dtype == "fp32"
        groups = _decay_groups(model, config.weight_decay)
        heads = _value_heads(model)
        # Kept here, because loading a checkpoint's optimizer state overwrites the settings of its groups.
        self._rates = [1.0] * len(groups) + [critic_lr / config.lr] * len(heads)
        optimizer = torch.optim.AdamW([*groups, *heads], lr=config.lr, betas=config.betas, foreach=True)
        with _quiet():
            self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=zero_config(config))
        self._engine.checkpoint_engine.save = write_state
        self.module: nn.Module = self._engine.module
        self.device = torch.device(self._engine.device)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine(*args, **kwargs)

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Add the micro-batch's gradient. `is_last` marks the last one of the optimizer step."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss)
        if not is_last:
            self._engine.step()

    def step(self, lr: float) -> float:
        """Apply the accumulated gradient at learning rate `lr`. Returns the gradient's global norm before clipping."""
        for group, rate in zip(self._engine.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = lr * rate
        # Without ZeRO in fp32 DeepSpeed does not wrap the optimizer, and then it does not compute the norm.
        norm = self._plain_grad_norm() if self._is_plain else None
        self._engine.step()
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def _plain_grad_norm(self) -> Tensor:
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    @contextlib.contextmanager
    def gathered(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        """Complete parameters inside the block. Outside, ZeRO-3 keeps only shards."""
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters, enabled=self._stage == 3):
            yield

    def save(self, directory: Path) -> None:
        """Write this rank's part of weights and optimizer state. All ranks call it together."""
        with _quiet():
            self._engine.save_checkpoint(str(directory), tag="state", save_latest=False)

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote. Raises `RuntimeError` if DeepSpeed found nothing to load, which it does not
        report."""
        from deepspeed.runtime.fp16.loss_scaler import LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        previous = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        try:
            with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]), _quiet():
                path, _ = self._engine.load_checkpoint(str(directory), tag="state")
        finally:
            if previous is None:
                del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
            else:
                os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = previous
        if path is None:
            raise RuntimeError(f"DeepSpeed found no state in {directory}")

    def close(self) -> None:
        self._engine.destroy()


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: weight decay for matrices only, not for norms and biases. One group if nothing decays."""
    apart = {id(parameter) for group in _value_heads(model) for parameter in group["params"]}
    parameters = [each for each in model.parameters() if each.requires_grad and id(each) not in apart]
    if weight_decay == 0:
        return [{"params": parameters, "weight_decay": 0.0}]
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    others = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _value_heads(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups of the value head, which has its own learning rate and no decay; [] without a value head."""
    heads = [module for module in model.modules() if isinstance(module, ValueHead)]
    return [{"params": list(head.parameters()), "weight_decay": 0.0} for head in heads]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep only warnings of DeepSpeed, which logs and prints every start and save at length."""
    logger = logging.getLogger("DeepSpeed")
    previous = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(previous)


def write_state(state_dict: Any, path: str) -> None:
    """`torch.save` through a Python file.

    Given a path, `torch.save` keeps the interpreter lock while it writes: 0.35 s per GB, in which the event loop of a
    local run could do nothing.
    """
    with open(path, "wb") as file:
        torch.save(state_dict, file)

"""Makes our transport known to vLLM in every process that it starts (entry point `vllm.general_plugins`)."""

import ctypes
import multiprocessing
import signal
import sys

PR_SET_PDEATHSIG = 1


def register() -> None:
    """Put `gloo` beside vLLM's own backends, and `nccl` in the place of its own. vLLM may call this several times in a
    process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

    for name in ("gloo", "nccl"):
        module = f"volley.rollout.transport.{name}"
        for factory, kind in (WeightTransferEngineFactory, "Engine"), (WeightTransferTrainerFactory, "Trainer"):
            factory._registry.pop(name, None)
            factory.register_engine(name, module, f"{name.capitalize()}{kind}")
    if multiprocessing.parent_process() is not None:
        _die_with_parent()


def _die_with_parent() -> None:
    """An engine's process must not outlive a worker that was killed (Linux; elsewhere vLLM's own watch must do)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

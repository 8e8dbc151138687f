"""A push as its driver sees it: who is blamed for what, who is left, and how often it is sent."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from rollout.config import TransferConfig
from rollout.engine import EngineLost
from rollout.transport import client
from rollout.transport.client import PushReport, WeightClient
from rollout.transport.stream import TensorMeta, TransportError

CONFIG = TransferConfig(connect_s=1, transfer_s=1, commit_s=1)


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "GRACE_S", 0.1)


class Learner:
    """failures: errors of the first sends, one each."""

    def __init__(self, *failures: str) -> None:
        self.failures = list(failures)
        self.worlds: list[int] = []
        self.num_sent = 0

    async def open_transfer(self, transport: str) -> tuple[str, int]:
        return "127.0.0.1", 5000 + len(self.worlds)

    async def connect_transfer(self, world_size: int, config: TransferConfig) -> None:
        self.worlds.append(world_size)

    async def send_weights(self) -> str:
        self.num_sent += 1
        if self.failures and (failure := self.failures.pop(0)):
            raise TransportError(failure)
        return "sum"

    async def close_transfer(self) -> None: ...

    async def weight_metas(self) -> Sequence[TensorMeta]:
        return [TensorMeta("w", "float32", (10,))]


class Engine:
    """receives: what each receive answers; an exception is raised after `lose`. commits: whether a commit works."""

    def __init__(self, name: str, *receives: Any, num_ranks: int = 1, commits: bool = True) -> None:
        self.name, self.num_ranks, self.lost = name, num_ranks, ""
        self.receives = list(receives)
        self.commits = commits
        self.version = 0
        self.infos: list[dict[str, Any]] = []

    async def connect(self, init_info: dict[str, Any], deadline_s: float) -> str:
        self.infos.append(init_info)
        return ""

    async def receive(self, metas: Sequence[TensorMeta], deadline_s: float) -> tuple[str, str]:
        answer = self.receives.pop(0) if self.receives else ("sum", "")
        if isinstance(answer, str):
            self.lose(answer)
            raise EngineLost(self.lost)
        return answer  # type: ignore[no-any-return]

    async def commit(self, version: int, deadline_s: float) -> None:
        if not self.commits:
            self.lose("commit: no answer")
            raise EngineLost(self.lost)
        self.version = version

    def lose(self, reason: str) -> None:
        self.lost = reason


def push(learner: Learner, *engines: Engine, times: int = 1) -> PushReport[Engine]:
    async def everything() -> PushReport[Engine]:
        weights = WeightClient(learner, "gloo", CONFIG, attempts=3)
        for version in range(1, times + 1):
            report = await weights.push([engine for engine in engines if not engine.lost], version)
        return report

    return asyncio.run(everything())


def test_a_push_reaches_all_and_the_group_is_kept_for_the_next_one() -> None:
    learner, engines = Learner(), [Engine("a", num_ranks=2), Engine("b"), Engine("c", num_ranks=3)]
    report = push(learner, *engines, times=3)
    assert [engine.version for engine in engines] == [3, 3, 3]
    assert learner.worlds == [7]
    assert [engine.infos[0]["rank_offset"] for engine in engines] == [1, 3, 4]
    assert (report.num_attempts, report.num_bytes, learner.num_sent) == (1, 40, 3)


@pytest.mark.parametrize("answer", ["receive: its process died", ("other", "")], ids=["death", "checksum"])
def test_an_engine_that_fails_is_given_up_and_the_others_get_everything_again(answer: Any) -> None:
    learner, bad, good = Learner(), Engine("bad", answer), Engine("good")
    report = push(learner, bad, good)
    assert report.committed == (good,)
    assert (good.version, bad.version) == (1, 0)
    assert bad.lost
    assert learner.worlds == [3, 2]
    assert report.num_attempts == 2


def test_a_broken_link_without_anybody_to_blame_is_tried_again() -> None:
    learner, engines = Learner("send: at tensor w (reset)"), [Engine("a", ("", "receive: at tensor w")), Engine("b")]
    assert push(learner, *engines).num_attempts == 2
    assert [engine.version for engine in engines] == [1, 1]


def test_a_link_that_stays_broken_ends_with_the_tensor() -> None:
    with pytest.raises(TransportError, match=r"push of version 1: send: at tensor w .*; tried 3 times"):
        push(Learner(*["send: at tensor w (reset)"] * 3), Engine("a"))


def test_an_engine_that_cannot_load_is_given_up_without_sending_again() -> None:
    learner, bad, good = Learner(), Engine("bad", commits=False), Engine("good")
    report = push(learner, bad, good)
    assert report.committed == (good,)
    assert learner.num_sent == 1


def test_all_engines_lost_leaves_nothing_to_do() -> None:
    report = push(Learner(), Engine("a", "died"), Engine("b", "died too"))
    assert report.committed == ()

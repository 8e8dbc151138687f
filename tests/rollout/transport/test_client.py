"""The push client: which engine is given up and why, which ones remain, and how often a push is sent."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from volley.rollout.config import TransferConfig
from volley.rollout.errors import EngineLost
from volley.rollout.transport import client
from volley.rollout.transport.client import PushReport, WeightClient
from volley.rollout.transport.protocol import JoinRequest
from volley.rollout.transport.stream import TensorMeta, TransportError
from volley.rollout.types import LoadedWeights

CONFIG = TransferConfig(connect_s=1, transfer_s=1, commit_s=1)


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "GRACE_S", 0.1)
    monkeypatch.setattr(client, "LOOK_S", 0.02)


HANGS, HANGS_FOR_GOOD = "hangs", "hangs for good"
SENT, OTHER = "checksum sent", "other checksum"


class Learner:
    """Test double of the learner, as `RemoteSender` and `SenderEnd` in one.

    failures: errors of the first sends, one each; HANGS waits until it is aborted, HANGS_FOR_GOOD longer than that.
    num_slow: number of tensors that take 0.3 s each.
    """

    def __init__(self, *failures: str, num_slow: int = 0) -> None:
        self.failures = list(failures)
        self.num_slow = num_slow
        self.worlds: list[int] = []
        self.num_sent = 0
        self.at = ""
        self.aborted = asyncio.Event()
        self.turn = asyncio.Lock()

    def exclusive(self) -> asyncio.Lock:
        return self.turn

    async def transfer(self, verb: Any, *arguments: Any) -> Any:
        return await getattr(self, verb.__name__)(*arguments)

    async def open(self, transport: str) -> tuple[str, int]:
        return "127.0.0.1", 5000 + len(self.worlds)

    async def connect(self, world_size: int, config: TransferConfig) -> None:
        self.worlds.append(world_size)
        await self.fail("connect: ")

    async def send(self) -> str:
        self.num_sent += 1
        for i in range(self.num_slow):
            self.at = f"layer.{i}"
            await asyncio.sleep(0.3)
        await self.fail("")
        return SENT

    async def fail(self, phase: str) -> None:
        if not self.failures or not self.failures[0].startswith(phase):
            return
        failure = self.failures.pop(0).removeprefix(phase)
        if failure in (HANGS, HANGS_FOR_GOOD):
            self.at = "layer.7"
            await self.aborted.wait()
            await asyncio.sleep(60 if failure == HANGS_FOR_GOOD else 0)
            failure = "send: aborted"
        if failure:
            raise TransportError(failure)

    async def abort(self) -> None:
        self.aborted.set()

    async def position(self) -> str:
        return self.at

    async def close(self) -> None: ...

    async def metas(self) -> Sequence[TensorMeta]:
        return [TensorMeta("w", "float32", (10,))]


class Engine:
    """Test double of an engine, as `RemoteReceiver` and `ReceiverEnd` in one.

    receives: the result of each receive; HANGS waits for ever, a `TransportError` is raised, another text is the reason
    why the engine is lost. commits: whether a commit succeeds. loads: the weights that it reports then, if other ones
    than were sent.
    """

    def __init__(
        self, name: str, *receives: Any, num_ranks: int = 1, commits: bool = True, loads: LoadedWeights | None = None
    ) -> None:
        self.name, self.num_ranks, self.lost = name, num_ranks, ""
        self.receives = list(receives)
        self.commits = commits
        self.loads = loads
        self.version = self.committed = 0
        self.requests: list[JoinRequest] = []

    async def transfer(self, deadline_s: float | None, verb: Any, *arguments: Any) -> Any:
        return await getattr(self, verb.__name__)(*arguments)

    async def connect(self, request: JoinRequest) -> None:
        self.requests.append(request)

    async def receive(self, metas: Sequence[TensorMeta]) -> str:
        answer = self.receives.pop(0) if self.receives else SENT
        if answer == HANGS:
            await asyncio.sleep(60)
        if isinstance(answer, TransportError):
            raise answer
        if answer not in (SENT, OTHER):
            self.lose(answer)
            raise EngineLost(self.lost)
        return str(answer)

    async def commit(self, version: int) -> LoadedWeights:
        if not self.commits:
            self.lose("commit: no answer")
            raise EngineLost(self.lost)
        self.committed = version
        return self.loads or LoadedWeights(version, "digest")

    async def resume(self) -> int:
        return self.committed

    def lose(self, reason: str) -> None:
        self.lost = reason


def push(learner: Learner, *engines: Engine, times: int = 1) -> PushReport[Engine]:
    async def everything() -> PushReport[Engine]:
        weights = WeightClient(learner, "gloo", CONFIG, attempts=3)
        for version in range(1, times + 1):
            report = await weights.push([engine for engine in engines if not engine.lost], version)
        return report

    return asyncio.run(everything())


def test_push_reaches_all_engines_and_the_group_is_reused() -> None:
    learner, engines = Learner(), [Engine("a", num_ranks=2), Engine("b"), Engine("c", num_ranks=3)]
    report = push(learner, *engines, times=3)
    assert [engine.version for engine in engines] == [3, 3, 3]
    assert learner.worlds == [7]
    assert [engine.requests[0].rank_offset for engine in engines] == [1, 3, 4]
    assert (report.num_attempts, report.num_bytes, learner.num_sent) == (1, 40, 3)


@pytest.mark.parametrize("answer", ["receive: its process died", OTHER], ids=["death", "checksum"])
def test_failed_engine_is_given_up_and_the_others_receive_everything_again(answer: Any) -> None:
    learner, bad, good = Learner(), Engine("bad", answer), Engine("good")
    report = push(learner, bad, good)
    assert report.committed == (good,)
    assert (good.version, bad.version) == (1, 0)
    assert bad.lost
    assert learner.worlds == [3, 2]
    assert report.num_attempts == 2


def test_broken_link_without_an_engine_to_blame_is_retried() -> None:
    learner, engines = (
        Learner("send: at tensor w (reset)"),
        [Engine("a", TransportError("receive: at tensor w")), Engine("b")],
    )
    assert push(learner, *engines).num_attempts == 2
    assert [engine.version for engine in engines] == [1, 1]


def test_link_that_stays_broken_raises_with_the_tensor() -> None:
    with pytest.raises(TransportError, match=r"push of version 1: send: at tensor w .*; tried 3 times"):
        push(Learner(*["send: at tensor w (reset)"] * 3), Engine("a"))


def test_engine_that_cannot_load_is_given_up_without_a_resend() -> None:
    learner, bad, good = Learner(), Engine("bad", commits=False), Engine("good")
    report = push(learner, bad, good)
    assert report.committed == (good,)
    assert learner.num_sent == 1


def test_push_ends_when_all_engines_are_lost() -> None:
    report = push(Learner(), Engine("a", "died"), Engine("b", "died too"))
    assert report.committed == ()


def test_learner_that_waits_for_a_dead_engine_is_aborted_and_the_others_are_served() -> None:
    """As over nccl: the sender never notices, and the other receiver fails by its own deadline."""
    learner = Learner(HANGS)
    dead, good = (
        Engine("dead", "receive: its process died"),
        Engine("good", TransportError("receive: at tensor layer.7")),
    )
    report = push(learner, dead, good)
    assert report.committed == (good,)
    assert (good.version, report.num_attempts, learner.worlds) == (1, 2, [3, 2])


def test_learner_that_ignores_an_abort_ends_the_run_with_phase_and_tensor() -> None:
    with pytest.raises(TransportError, match=r"push of version 1: send: at tensor layer\.7: the learner hangs"):
        push(Learner(HANGS_FOR_GOOD), Engine("dead", "receive: its process died"), Engine("good"))


def test_learner_that_hangs_in_connect_is_aborted() -> None:
    engine = Engine("a")
    assert push(Learner("connect: hangs"), engine).num_attempts == 2
    assert engine.version == 1
    with pytest.raises(TransportError, match="push of version 1: connect: the learner hangs"):
        push(Learner("connect: hangs for good"), Engine("a"))


def test_frozen_engine_is_given_up_with_the_tensor_and_the_others_are_served() -> None:
    frozen, good = Engine("frozen", HANGS), Engine("good")
    assert push(Learner(HANGS), frozen, good).committed == (good,)
    assert frozen.lost.startswith("receive: no progress for 1 s at tensor layer.7")


def test_push_may_take_longer_than_its_deadline_while_it_makes_progress() -> None:
    learner = Learner(num_slow=6)

    class Patient(Engine):
        async def receive(self, metas: Sequence[TensorMeta]) -> str:
            while learner.at != "layer.5":
                await asyncio.sleep(0.02)
            return await super().receive(metas)

    engine = Patient("a")
    report = push(learner, engine)
    assert report.seconds > CONFIG.transfer_s + client.GRACE_S
    assert (report.num_attempts, engine.version) == (1, 1)


@pytest.mark.parametrize(
    ("loads", "reason"),
    [
        (LoadedWeights(7, "digest"), "commit: it reports version 7 where 1 was sent"),
        (LoadedWeights(1, "other"), "commit: its weights have digest other, unlike most of the engines"),
    ],
    ids=["version", "digest"],
)
def test_engine_that_loaded_other_weights_never_serves(loads: LoadedWeights, reason: str) -> None:
    learner, bad, good = Learner(), Engine("bad", loads=loads), [Engine("a"), Engine("b")]
    report = push(learner, bad, *good)
    assert report.committed == tuple(good)
    assert (bad.lost, bad.version) == (reason, 0)
    assert [engine.version for engine in good] == [1, 1]


def test_two_engines_that_disagree_both_stop_serving() -> None:
    pair = Engine("a"), Engine("b", loads=LoadedWeights(1, "other"))
    assert push(Learner(), *pair).committed == ()
    assert [engine.version for engine in pair] == [0, 0]

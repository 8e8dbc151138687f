"""The lifetime, the number and the network access of scoring processes."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rewards.sandbox_helpers import is_alive, within
from tests.rewards.scoring_helpers import QUICK, children_of, completion, prompt, scores
from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.types import Score

pytestmark = pytest.mark.usefixtures("others")


def test_quick_rewards_need_no_process() -> None:
    async def main() -> float:
        async with Scorer([RewardConfig("think_format")]) as scorer:
            assert not children_of(os.getpid())
            return (await scorer.score(prompt(), completion("<think>a</think>b"))).reward

    assert asyncio.run(main()) == 1.0


def test_there_is_one_process_per_usable_core_by_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cores that this process may use, not those of the machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3, 8)))

    async def num_processes(config: ScorerConfig) -> int:
        async with Scorer([RewardConfig(f"{file}:length")], config) as scorer:
            await scorer.score(prompt(), completion("x"))
            return len(children_of(os.getpid()))

    assert asyncio.run(num_processes(ScorerConfig())) == 5
    assert asyncio.run(num_processes(ScorerConfig(workers=2))) == 2


def test_the_number_of_processes_has_no_upper_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(96)))
    assert ScorerConfig().num_workers == 96
    assert ScorerConfig(workers=7).num_workers == 7


def test_cancelled_calls_do_not_break_the_scorer(file: Path) -> None:
    async def main() -> float:
        async with Scorer([RewardConfig(f"{file}:acts")], ScorerConfig(workers=1, timeout_s=0.5)) as scorer:
            tasks = [asyncio.ensure_future(scorer.score(prompt(), completion(text))) for text in ("hang", "a", "b")]
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return (await scorer.score(prompt(), completion("good"))).reward

    assert asyncio.run(main()) == 0.5


def test_close_while_items_are_in_progress(file: Path) -> None:
    async def main() -> list[Any]:
        scorer = Scorer([RewardConfig(f"{file}:acts")], ScorerConfig(workers=2, timeout_s=60))
        await scorer.start()
        pids = children_of(os.getpid())
        assert len(pids) >= 2
        tasks = [asyncio.ensure_future(scorer.score(prompt(), completion("hang"))) for _ in range(40)]
        await asyncio.sleep(0.05)
        await scorer.close()
        await scorer.close()
        assert not any(is_alive(pid) for pid in pids)
        with pytest.raises(RuntimeError, match="not running"):
            await scorer.score(prompt(), completion("good"))
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(result, asyncio.CancelledError) for result in asyncio.run(main()))


def test_a_cancelled_run_leaves_no_process(file: Path) -> None:
    pids: list[int] = []

    async def main() -> None:
        async with Scorer([RewardConfig(f"{file}:acts")], ScorerConfig(workers=2, timeout_s=60)) as scorer:
            pids.extend(children_of(os.getpid()))
            await scorer.score(prompt(), completion("hang"))

    async def cancelled() -> None:
        task = asyncio.ensure_future(main())
        while not pids:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    assert len(pids) >= 2
    assert not any(is_alive(pid) for pid in pids)


def test_processes_started_by_an_item_are_killed_with_it(file: Path, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    (score,) = scores([RewardConfig(f"{file}:acts")], [f"breed {note}"])
    assert "timed out" in score.unscorable
    assert within(5, lambda: not is_alive(int(note.read_text())))


def test_scoring_processes_die_when_their_parent_is_killed(file: Path) -> None:
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from tests.rewards.scoring_helpers import *

async def main():
    async with Scorer([RewardConfig("{file}:acts")], ScorerConfig(workers=2, timeout_s=600)) as scorer:
        tasks = [asyncio.ensure_future(scorer.score(prompt(), completion("hang"))) for _ in range(2)]
        await asyncio.sleep(0.1)
        print("ready", flush=True)
        await asyncio.gather(*tasks)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        pids = children_of(parent.pid)
        assert len(pids) == 2
        assert all(map(is_alive, pids))
        parent.send_signal(signal.SIGKILL)
        assert within(5, lambda: not any(map(is_alive, pids)))


FETCH = """
import socket

def fetch(prompt, response, answer):
    with socket.socket() as connection:
        connection.settimeout(5)
        connection.connect(("127.0.0.1", int(answer)))
    return 1.0
"""


def may_leave_the_network() -> bool:
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0


def reached(tmp_path: Path, network: bool) -> Score:
    (tmp_path / "fetches.py").write_text(FETCH)
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = ScorerConfig(workers=1, network=network)
        terms = [RewardConfig(f"{tmp_path}/fetches.py:fetch")]
        return scores(terms, ["a"], config, answer=str(server.getsockname()[1]))[0]


def test_user_functions_have_network_access_unless_the_recipe_forbids_it(tmp_path: Path) -> None:
    assert reached(tmp_path, network=True).reward == 1.0
    if not may_leave_the_network():
        pytest.skip("this system does not allow network namespaces")
    assert "Network is unreachable" in reached(tmp_path, network=False).unscorable


@pytest.mark.parametrize("user", ["this user", "without privileges"])
def test_processes_with_built_in_rewards_have_no_network_and_still_die_with_their_parent(user: str) -> None:
    if not may_leave_the_network():
        pytest.skip("this system does not allow network namespaces")
    # Root can leave the network directly; other users first need a user namespace.
    weaken = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"] if user == "without privileges" else []
    if weaken and subprocess.run([*weaken, "true"], capture_output=True).returncode:
        pytest.skip("setpriv is missing, or this user has no privileges to drop, so the other case covers this one")
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from tests.rewards.scoring_helpers import *

async def main():
    async with Scorer([RewardConfig("math")], ScorerConfig(workers=2)) as scorer:
        given = completion("\\\\boxed{{\\\\frac{{3}}{{\\\\sqrt{{3}}}}}}")
        score = await scorer.score(prompt(answer="\\\\sqrt{{3}}"), given)
        print(score.reward, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""
    with subprocess.Popen([*weaken, sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        score, pids = parent.stdout.readline(), children_of(parent.pid)
        networks = [os.readlink(f"/proc/{pid}/ns/net") for pid in pids]
        parent.send_signal(signal.SIGKILL)
        assert score == "1.0\n"
        assert len(pids) == 2
        assert os.readlink("/proc/self/ns/net") not in networks
        assert within(5, lambda: not any(map(is_alive, pids)))


def test_sigterm_to_all_processes_loses_no_item(file: Path) -> None:
    """`ray job stop` signals every process of a job, and the current step still has to be scored."""

    async def main() -> list[Score]:
        async with Scorer([RewardConfig(f"{file}:length")], QUICK) as scorer:
            await scorer.score(prompt(), completion("warm"))
            items = [asyncio.ensure_future(scorer.score(prompt(), completion("x" * n))) for n in range(200)]
            await asyncio.sleep(0)
            for pid in children_of(os.getpid()):
                os.kill(pid, signal.SIGTERM)
            return list(await asyncio.gather(*items))

    results = asyncio.run(main())
    assert [score.reward for score in results] == [float(n) for n in range(200)]
    assert not any(score.unscorable for score in results)

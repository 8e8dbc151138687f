"""The scoring service with real child processes: blame, limits, clean ends."""

import asyncio
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from boxed import is_alive, within

from rewards.config import RewardConfig, ScorerConfig
from rewards.preflight import check_rewards
from rewards.scorer import Scorer
from rollout.errors import ConfigError, RewardError
from rollout.types import Completion, Prompt, Score

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


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "scorer_functions.py"
    path.write_text(FUNCTIONS)
    return path


def prompt(answer: str = "18", **row: Any) -> Prompt:
    return Prompt(0, 0, "question", (1, 2), answer, row)


def completion(text: str) -> Completion:
    return Completion((1, 2, 3), (0.0, 0.0, 0.0), text, "stop", 0, 0)


def scores(terms: list[RewardConfig], texts: list[str], config: ScorerConfig = QUICK, **row: Any) -> list[Score]:
    async def all_of_them() -> list[Score]:
        async with Scorer(terms, config) as scorer:
            return list(await asyncio.gather(*(scorer.score(prompt(**row), completion(text)) for text in texts)))

    return asyncio.run(all_of_them())


OTHERS: set[int] = set()
"""Children that earlier tests left this process: the sandbox it shares, a resource tracker."""


def children_of(pid: int) -> list[int]:
    children = {int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    return sorted(children - OTHERS)


@pytest.fixture(scope="module", autouse=True)
def others() -> None:
    OTHERS.update(children_of(os.getpid()))


def test_terms_of_all_kinds(file: Path) -> None:
    terms = [
        RewardConfig("math"),
        RewardConfig("think_format", weight=0.5),
        RewardConfig("length", label="overlong", options={"max_tokens": 3, "cache_tokens": 2}),
        RewardConfig(f"{file}:length"),
        RewardConfig(f"{file}:column"),
    ]
    (score,) = scores(terms, [r"<think>a</think>\boxed{\sqrt{324}}"], level=7)
    assert score.terms == {"math": 1.0, "think_format": 1.0, "overlong": -1.0, "length": 34.0, "column": 7.0}
    assert score.reward == 1.0 + 0.5 - 1.0 + 34.0 + 7.0
    assert (score.accuracy, score.extracted, score.unscorable) == (1.0, r"\sqrt{324}", "")


def test_many_at_once_keep_their_order(file: Path) -> None:
    texts = ["x" * n for n in range(600)]
    assert [score.reward for score in scores([RewardConfig(f"{file}:length")], texts)] == [float(n) for n in range(600)]


def test_each_failure_costs_its_own_item_only(file: Path) -> None:
    reasons = {
        7: ("hang", "reward 'acts': timed out after 1 s"),
        8: ("sleep", "reward 'acts': timed out after 1 s"),
        20: ("exit", "reward 'acts': its process died"),
        21: ("segfault", "reward 'acts': its process died"),
        40: ("eat", "reward 'acts' raised MemoryError: "),
        41: ("none", "reward 'acts' returned None, not a finite number"),
        42: ("nan", "reward 'acts' returned nan, not a finite number"),
        43: ("raise", "reward 'acts' raised ValueError: no"),
    }
    texts = [reasons[n][0] if n in reasons else f"good {n}" for n in range(200)]
    results = scores([RewardConfig("think_format"), RewardConfig(f"{file}:acts")], texts)
    for number, score in enumerate(results):
        if number in reasons:
            assert score.unscorable == reasons[number][1]
            assert math.isnan(score.reward)
            assert math.isnan(score.terms["acts"])
            assert score.terms["think_format"] == 0.0
        else:
            assert (score.reward, score.unscorable) == (0.5, "")


def test_a_hanging_item_blocks_neither_the_loop_nor_the_others(file: Path) -> None:
    async def main() -> tuple[int, bool]:
        ticks = 0
        async with Scorer([RewardConfig(f"{file}:acts")], ScorerConfig(workers=2, timeout_s=3.0)) as scorer:
            hanging = asyncio.ensure_future(scorer.score(prompt(), completion("hang")))
            await asyncio.sleep(0.05)
            for n in range(10):
                assert (await scorer.score(prompt(), completion(f"good {n}"))).reward == 0.5
            others_first = not hanging.done()
            while not hanging.done():
                ticks += 1
                await asyncio.sleep(0.01)
            assert "timed out" in hanging.result().unscorable
        return ticks, others_first

    ticks, others_first = asyncio.run(main())
    assert others_first
    assert ticks > 10


def test_the_clock_does_not_run_while_an_item_waits(file: Path) -> None:
    config = ScorerConfig(workers=1, timeout_s=0.5)
    results = scores([RewardConfig(f"{file}:acts")], ["hang", "hang", "hang", "good"], config)
    assert [bool(score.unscorable) for score in results] == [True, True, True, False]


def test_a_loop_that_was_busy_does_not_make_finished_items_time_out(file: Path) -> None:
    async def main() -> list[Score]:
        async with Scorer([RewardConfig(f"{file}:length")], ScorerConfig(workers=1, timeout_s=0.3)) as scorer:
            tasks = [asyncio.ensure_future(scorer.score(prompt(), completion("x" * n))) for n in range(40)]
            for _ in range(5):
                await asyncio.sleep(0)
            time.sleep(0.8)  # what training on the loop's own thread would do
            return list(await asyncio.gather(*tasks))

    assert [score.reward for score in asyncio.run(main())] == [float(n) for n in range(40)]


def test_the_processor_limit_holds_while_the_loop_is_blocked_and_cannot_be_ignored(file: Path) -> None:
    async def main() -> tuple[Score, bool]:
        async with Scorer([RewardConfig(f"{file}:ignores")], ScorerConfig(workers=1, timeout_s=1.0)) as scorer:
            scorer._children[0].process.send_signal(signal.SIGSTOP)  # until the loop is blocked
            task = asyncio.ensure_future(scorer.score(prompt(), completion("hang")))
            await asyncio.sleep(0.05)
            child = scorer._children[0].process
            child.send_signal(signal.SIGCONT)
            ended = within(60, lambda: not is_alive(child.pid))  # the loop's own thread waits here
            return await task, ended

    score, ended = asyncio.run(main())
    assert ended
    assert score.unscorable in ("reward 'ignores': its process died", "reward 'ignores': timed out after 1 s")


def test_memory_that_leaks_away_costs_an_item_not_the_run(file: Path) -> None:
    config = ScorerConfig(workers=1, memory_bytes=300 << 20)
    results = scores([RewardConfig(f"{file}:remembers")], ["x"] * 12, config)
    lost = [score for score in results if score.unscorable]
    assert 1 <= len(lost) <= 4
    assert all("MemoryError" in score.unscorable for score in lost)


def test_what_a_reward_prints_does_not_reach_the_protocol(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert [score.reward for score in scores([RewardConfig(f"{file}:noisy")], ["a"] * 20)] == [1.0] * 20
    assert capfd.readouterr().out == ""


def test_secrets_stay_out_of_the_children(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "RAY_AUTH_MODE", "MY_SECRET"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("PLAIN", "seen")
    assert scores([RewardConfig(f"{file}:environment")], ["a"])[0].reward == 1.0


def test_hostile_answers_lose_no_good_one(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    hostile = [
        "9**9**9**9",
        "10^{10^{10}}",
        "(9^{99})^{999}",
        "1000000!",
        "(" * 100_000,
        "{" * 100_000 + "}" * 100_000,
        f"__import__('os').system('touch {mark}')",
        "\x00\x00\x00",
        "\ud800",
        r"(a+b+c+d+e+f)^{99} - (a-b+c-d+e-f)^{98}",
        r"\sqrt{\sqrt{\sqrt{\sqrt{(2+\sqrt{3})^{99}}}}} + e^{e^{9}}",
    ]
    good = r"\boxed{\frac{\sqrt{12}}{2}}"
    texts = [text for each in hostile for text in (f"\\boxed{{{each}}}", good, each)]
    results = scores([RewardConfig("math")], texts, answer=r"\sqrt{3}")
    for text, score in zip(texts, results, strict=True):
        if text == good:
            assert (score.reward, score.unscorable) == (1.0, "")
        else:
            assert score.reward == 0.0 or "timed out" in score.unscorable or "MemoryError" in score.unscorable
    assert not mark.exists()


def test_a_row_that_cannot_travel_is_unscorable(file: Path) -> None:
    (score,) = scores([RewardConfig(f"{file}:length"), RewardConfig("think_format")], ["a"], level={1, 2})
    assert "row of the data" in score.unscorable
    assert score.terms["think_format"] == 0.0


def test_a_caller_that_gives_up_leaves_the_scorer_whole(file: Path) -> None:
    async def main() -> float:
        async with Scorer([RewardConfig(f"{file}:acts")], ScorerConfig(workers=1, timeout_s=0.5)) as scorer:
            tasks = [asyncio.ensure_future(scorer.score(prompt(), completion(text))) for text in ("hang", "a", "b")]
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return (await scorer.score(prompt(), completion("good"))).reward

    assert asyncio.run(main()) == 0.5


def test_closing_while_work_is_going_on(file: Path) -> None:
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


def test_what_an_item_started_dies_with_it(file: Path, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    (score,) = scores([RewardConfig(f"{file}:acts")], [f"breed {note}"])
    assert "timed out" in score.unscorable
    assert within(5, lambda: not is_alive(int(note.read_text())))


def test_children_die_when_their_parent_is_killed(file: Path) -> None:
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_scorer import *

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


def test_the_network_is_for_ones_own_functions_unless_the_recipe_forbids_it(tmp_path: Path) -> None:
    assert reached(tmp_path, network=True).reward == 1.0
    if not may_leave_the_network():
        pytest.skip("this system lets nobody make a network namespace")
    assert "Network is unreachable" in reached(tmp_path, network=False).unscorable


@pytest.mark.parametrize("user", ["whoever this is", "one without rights"])
def test_children_with_built_in_rewards_have_no_network_and_still_die_with_their_parent(user: str) -> None:
    if not may_leave_the_network():
        pytest.skip("this system lets nobody make a network namespace")
    # Root may leave the network as it is; others must first become root of a namespace of their own.
    weaken = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"] if user == "one without rights" else []
    if weaken and subprocess.run([*weaken, "true"], capture_output=True).returncode:
        pytest.skip("setpriv is not there, or this user has no right to give away: the other case is the same then")
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_scorer import *

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


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


def test_without_user_functions_and_formulas_there_is_no_process() -> None:
    async def main() -> float:
        async with Scorer([RewardConfig("think_format")]) as scorer:
            assert not children_of(os.getpid())
            return (await scorer.score(prompt(), completion("<think>a</think>b"))).reward

    assert run(main()) == 1.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise KeyError('gone')", "cannot be imported: KeyError: 'gone'"),
        ("import os; os._exit(0)", "the process ends"),
        ("def other(): pass", "there is no 'f'"),
        ("def f(prompt, response): pass", "does not take 'answer'"),
    ],
)
def test_rewards_that_do_not_load_are_refused_at_the_start(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text + "\n")
    terms = [RewardConfig("math"), RewardConfig(f"{path}:f")]

    async def main() -> None:
        async with Scorer(terms, QUICK):
            pass

    with pytest.raises(RewardError, match=said):
        run(main())
    with pytest.raises(RewardError, match=said):
        check_rewards(terms, {"prompt", "answer"})


def test_a_reward_that_breaks_during_the_run_ends_it_with_a_name(tmp_path: Path) -> None:
    path = tmp_path / "fades.py"
    path.write_text("import os\ndef f(prompt, response, answer): os._exit(1)\n")

    async def main() -> None:
        async with Scorer([RewardConfig(f"{path}:f")], ScorerConfig(workers=1, timeout_s=1)) as scorer:
            path.unlink()
            await asyncio.gather(*(scorer.score(prompt(), completion("a")) for _ in range(3)))

    with pytest.raises(RewardError, match=r"fades.py does not exist"):
        run(main())


def test_preflight_of_good_rewards(file: Path) -> None:
    check_rewards([RewardConfig("math"), RewardConfig(f"{file}:column")], {"prompt", "answer", "level"})
    check_rewards([RewardConfig("math"), RewardConfig("length", options={"max_tokens": 5})], {"prompt"})
    assert not within(0, lambda: bool(children_of(os.getpid())))


def test_preflight_says_what_is_wrong(file: Path) -> None:
    with pytest.raises(RewardError, match=r"requires 'level', .*the columns are 'answer', 'levle', 'prompt'"):
        check_rewards([RewardConfig(f"{file}:column")], {"prompt", "answer", "levle"})
    with pytest.raises(RewardError, match="requires 'max_tokens'"):
        check_rewards([RewardConfig("length")], {"prompt", "answer"})
    with pytest.raises(RewardError, match="did you mean 'math'"):
        check_rewards([RewardConfig("mathh")], {"prompt", "answer"})
    with pytest.raises(ConfigError, match="'math' stands there twice"):
        check_rewards([RewardConfig("math"), RewardConfig("math")], {"prompt", "answer"})
    with pytest.raises(RewardError, match="no plain value"):
        check_rewards([RewardConfig(f"{file}:length", options={"when": object()})], {"prompt"})


def test_preflight_of_a_module_that_hangs(tmp_path: Path) -> None:
    path = tmp_path / "hangs.py"
    path.write_text("while True: pass\n")
    started = time.monotonic()
    with pytest.raises(RewardError, match=r"hangs.py:f' hangs at import"):
        check_rewards([RewardConfig(f"{path}:f")], {"prompt"})
    assert time.monotonic() - started < 5
    assert not children_of(os.getpid())


def test_a_polite_stop_of_all_processes_costs_no_item(file: Path) -> None:
    """`ray job stop` signals every process of a job, and the step under way is still to be scored."""

    async def main() -> list[Score]:
        async with Scorer([RewardConfig(f"{file}:length")], QUICK) as scorer:
            await scorer.score(prompt(), completion("warm"))
            items = [asyncio.ensure_future(scorer.score(prompt(), completion("x" * n))) for n in range(200)]
            await asyncio.sleep(0)
            for pid in children_of(os.getpid()):
                os.kill(pid, signal.SIGTERM)
            return list(await asyncio.gather(*items))

    found = run(main())
    assert [score.reward for score in found] == [float(n) for n in range(200)]
    assert not any(score.unscorable for score in found)

"""A run on two nodes: the learner's two ranks on one, rollouts on the other, and a network link that is cut."""

import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.on_ray.two_nodes import PORT, Node, two_nodes, wait_until
from tests.cluster.whole_run import ENGINE, RANK, SCORER, WORKER, Run, rows, running

pytestmark = pytest.mark.faults


def over(head: Node, **cluster: Any) -> dict[str, Any]:
    """Recipe keys for these two nodes."""
    return {
        "learner": {"ranks": 2, "zero_stage": 2},
        "rollout": {"workers": 1},
        "cluster": {"address": f"{head.address}:{PORT}", "stall_s": 60, **cluster},
    }


def finish(run: Run, nodes: tuple[Node, Node], steps: int) -> None:
    assert run.end(300) == 0, run.log.read_text()[-3000:]
    run.assert_each_prompt_trained_once(steps)
    for node in nodes:
        wait_until(
            lambda node=node: not node.find(WORKER, ENGINE, RANK, SCORER),
            f"processes of the run are left on {node.name}",
            60,
        )


def test_weights_cross_between_nodes_and_a_cut_link_recovers(workspace: Path, tmp_path: Path) -> None:
    # 4 CPUs hold both ranks and no worker, 3 hold the worker and one rank at most.
    with two_nodes(tmp_path, (4, 3), "40mbit") as nodes:
        head, other = nodes
        changes = over(head, rank_cpus=2, worker_cpus=3) | {"steps": 30, "env": head.variables}
        with running(workspace, "two-nodes", around=head.around, **changes) as run:
            run.wait_for(3)
            assert len(head.find(RANK)) == 2
            assert not head.find(ENGINE)
            assert len(other.find(ENGINE)) == 1
            assert not other.find(RANK)
            cut_in_a_push(run, other, 3)
            wait_until(lambda: run.steps() > 8, "the run did not continue after a short cut", 60)
            assert "lost" not in run.log.read_text()
            steps_then = cut_in_a_push(run, other, 25)
            # Samples from before the cut may still be trained on.
            assert run.steps() <= steps_then + 3
            finish(run, nodes, 30)
            assert "lost: rollout worker" in run.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_engine_lost_during_a_push_between_nodes_is_replaced(
    workspace: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with two_nodes(tmp_path, (4, 3), "40mbit") as nodes:
        head, other = nodes
        changes = over(head, rank_cpus=2, worker_cpus=3) | {"steps": 12, "env": head.variables}
        name = f"push-{number.name}"
        with running(workspace, name, around=head.around, **changes) as run:
            run.wait_for(3)
            wait_for_a_push(run, other)
            (engine,) = other.find(ENGINE)
            engine.send_signal(number)
            finish(run, nodes, 12)
            assert re.search(r"lost: rollout worker 0.0: (receive|collect|generate)", run.log.read_text())
            assert rows(workspace, name)[-1]["rollout_restarts"] == 1


def test_responses_are_scored_next_to_their_rollout_worker(workspace: Path, tmp_path: Path) -> None:
    """The second node has room for a scoring actor next to its worker. The actor is killed during the run."""
    with two_nodes(tmp_path, (4, 3)) as nodes:
        head, other = nodes
        changes = over(head, rank_cpus=2, worker_cpus=2) | {"steps": 12, "env": head.variables}
        with running(workspace, "scored-remotely", around=head.around, **changes) as run:
            run.wait_for(3)
            assert not head.find(SCORER)
            (actor,) = other.find(SCORER)
            actor.send_signal(signal.SIGKILL)
            finish(run, nodes, 12)
            assert "lost: scoring actor 0" in run.log.read_text()
            assert all(row["unscorable"] == 0 for row in rows(workspace, "scored-remotely"))


def wait_for_a_push(run: Run, node: Node) -> None:
    """Wait until the node has received a quarter of the weights without a pause."""
    size = rows(run.workspace, run.name)[-1]["push_bytes"]
    start, quiet_since = node.received_bytes(), time.monotonic()
    while node.received_bytes() - start < size / 4:
        if time.monotonic() - quiet_since > 0.5:
            start, quiet_since = node.received_bytes(), time.monotonic()
        time.sleep(0.01)


def cut_in_a_push(run: Run, node: Node, seconds: float) -> int:
    """Cut the link during a push, and restore it. Returns the number of steps done before."""
    wait_for_a_push(run, node)
    node.plug("down")
    steps = run.steps()
    time.sleep(seconds)
    node.plug("up")
    return steps


def test_run_continues_when_the_second_node_is_lost(workspace: Path, tmp_path: Path) -> None:
    with two_nodes(tmp_path, (5, 3)) as nodes:
        head, other = nodes
        changes = over(head, rank_cpus=1, worker_cpus=3) | {"steps": 20, "rollout": {"workers": 2}}
        changes["env"] = head.variables
        with running(workspace, "node-lost", around=head.around, **changes) as run:
            run.wait_for(4)
            assert len(other.find(ENGINE)) == 1
            assert len(head.find(ENGINE)) == 1
            other.raylet().send_signal(signal.SIGKILL)
            finish(run, nodes, 20)
            assert "lost: rollout worker" in run.log.read_text()

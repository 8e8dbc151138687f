"""The resources that a run takes from a cluster's nodes; no Ray is started."""

from dataclasses import replace
from typing import Any

import pytest

from volley.cluster.on_ray.actors import Place, actor_options
from volley.cluster.on_ray.placement import choose_transport, plan_resources
from volley.cluster.recipe.config import Recipe, parse_recipe
from volley.rewards.config import ScorerConfig
from volley.rollout.errors import ConfigError


def recipe(workers: int = 1, ranks: int = 1, t: int = 1, **cluster: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "n",
            "model": "m",
            "steps": 1,
            "groups_per_step": ranks,
            "data": {"train": "t.jsonl"},
            "rewards": ["math"],
            "launcher": "ray",
            "rollout": {"workers": workers, "tensor_parallel": t},
            "learner": {"ranks": ranks},
            "cluster": cluster,
        }
    )


def cpus(*each: float) -> list[dict[str, float]]:
    return [{"CPU": n} for n in each]


def test_equal_share_fits_on_every_node() -> None:
    # 6 CPUs for three actors are 2 each, but a node with 3 CPUs holds only one such actor.
    assert plan_resources(recipe(workers=2), cpus(3, 3), True).worker_cpus == 1
    assert plan_resources(recipe(workers=2), cpus(2, 4), True).worker_cpus == 2
    assert plan_resources(recipe(workers=2), cpus(64, 64), True).worker_cpus == 16


def test_run_that_fits_in_total_but_not_on_nodes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"3 CPUs \+ 3 CPUs.*2 rollout workers x 2 CPUs \+ 1 learner ranks x 2 CPUs"):
        plan_resources(recipe(workers=2, worker_cpus=2, rank_cpus=2), cpus(3, 3), True)
    # One worker on each node would leave no room for the ranks; the placement that fits is found.
    assert plan_resources(recipe(workers=2, ranks=2, worker_cpus=3, rank_cpus=4), cpus(6, 8), True).cpus == 14
    assert plan_resources(recipe(workers=4, ranks=2, worker_cpus=0.1, rank_cpus=0.3), cpus(0.7, 0.3), True).ranks == 2


def test_gpus_are_checked_by_role_and_by_node() -> None:
    nodes = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 2.0}]
    plan = plan_resources(recipe(workers=2, ranks=2), nodes, True)
    assert (plan.worker_gpus, plan.rank_gpus, plan.gpus) == (1, 1, 4)
    assert choose_transport(recipe(), plan) == "nccl"
    with pytest.raises(
        ConfigError, match=r"has 4 GPUs, and the recipe needs 5: 2 rollout workers x 2 .* launcher: loc"
    ):
        plan_resources(recipe(workers=2, t=2), nodes, True)
    with pytest.raises(ConfigError, match="needs 3 GPUs on one node, and the cluster's largest has 2"):
        plan_resources(recipe(workers=1, t=3), nodes, True)
    with pytest.raises(ConfigError, match=r"16 CPUs and 1 GPUs .* does not fit"):
        plan_resources(recipe(ranks=2, t=2), [{"CPU": 16.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 2.0}, {"GPU": 1.0}], True)


def test_run_without_engine_needs_no_worker() -> None:
    one_gpu = [{"CPU": 8.0, "GPU": 1.0}]
    with pytest.raises(ConfigError, match="has 1 GPUs, and the recipe needs 2"):
        plan_resources(recipe(), one_gpu, True)
    plan = plan_resources(recipe(), one_gpu, False)
    assert (plan.workers, plan.gpus, plan.rank_cpus) == (0, 1, 8)


def test_nccl_without_gpus_is_refused() -> None:
    on_gpus = parse_recipe(
        {"name": "n", "model": "m", "steps": 1, "data": {"train": "t.jsonl"}, "transfer": {"backend": "nccl"}}
    )
    with pytest.raises(ConfigError, match="the cluster has no GPU"):
        plan_resources(on_gpus, cpus(8), True)


def test_tensor_parallel_ranks_share_the_cpus_of_their_worker() -> None:
    group: Any = object.__new__(type("Group", (), {}))
    for num_processes, threads in ((4, "2"), (1, "8")):
        options = actor_options(recipe(), "rollout-0", Place(group, 0, 8, 0, num_processes))
        assert options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == threads


def test_scoring_actors_need_several_nodes_and_free_cpus() -> None:
    def scoring_cpus(nodes: list[dict[str, float]], made: Recipe, needs_processes: bool = True) -> float:
        return plan_resources(made, nodes, True, needs_processes).scoring_cpus

    assert scoring_cpus(cpus(64, 64), recipe(workers=2)) == 1
    assert scoring_cpus(cpus(64, 64), recipe(workers=2), needs_processes=False) == 0
    assert scoring_cpus(cpus(128), recipe(workers=2)) == 0
    # The default does not take CPUs from workers and ranks, and never makes a run fail that fits without actors.
    assert scoring_cpus(cpus(4, 4), recipe()) == 0
    assert scoring_cpus(cpus(4, 4), recipe(worker_cpus=3)) == 1
    assert scoring_cpus(cpus(4, 4), recipe(worker_cpus=4, rank_cpus=4)) == 0


def test_scoring_processes_of_the_recipe_are_reserved_on_every_node_with_workers() -> None:
    made = replace(recipe(workers=2), scorer=ScorerConfig(workers=3))
    plan = plan_resources(made, cpus(16, 16), True, True)
    # Any node with two actors of the run and a scoring actor has 13 CPUs for the two.
    assert (plan.scoring_cpus, plan.worker_cpus, plan.rank_cpus) == (3, 6, 6)
    assert plan_resources(made, cpus(16, 16), True, False).worker_cpus == 8

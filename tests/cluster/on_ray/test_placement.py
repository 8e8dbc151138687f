"""What a run takes of a cluster's nodes, from given resources: no Ray is started."""

from typing import Any

import pytest

from volley.cluster.on_ray.actors import actor_options
from volley.cluster.on_ray.placement import needs_of, transport_of
from volley.cluster.recipe.config import Recipe, parse_recipe
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


def test_an_equal_share_is_one_that_every_node_can_give() -> None:
    # 6 CPUs for three are 2 each, but 3 hold only one of 2.
    assert needs_of(recipe(workers=2), cpus(3, 3), True).worker_cpus == 1
    assert needs_of(recipe(workers=2), cpus(2, 4), True).worker_cpus == 2
    assert needs_of(recipe(workers=2), cpus(64, 64), True).worker_cpus == 16


def test_what_fits_in_sum_but_on_no_nodes_is_refused_by_role() -> None:
    with pytest.raises(ConfigError, match=r"3 CPUs \+ 3 CPUs.*2 rollout workers x 2 CPUs \+ 1 learner ranks x 2 CPUs"):
        needs_of(recipe(workers=2, worker_cpus=2, rank_cpus=2), cpus(3, 3), True)
    # First one worker on each node would leave no room; the division that fits is found.
    assert needs_of(recipe(workers=2, ranks=2, worker_cpus=3, rank_cpus=4), cpus(6, 8), True).cpus == 14
    assert needs_of(recipe(workers=4, ranks=2, worker_cpus=0.1, rank_cpus=0.3), cpus(0.7, 0.3), True).ranks == 2


def test_gpus_are_counted_by_role_and_by_node() -> None:
    nodes = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 2.0}]
    needs = needs_of(recipe(workers=2, ranks=2), nodes, True)
    assert (needs.worker_gpus, needs.rank_gpus, needs.gpus) == (1, 1, 4)
    assert transport_of(recipe(), needs) == "nccl"
    with pytest.raises(
        ConfigError, match=r"has 4 GPUs, and the recipe needs 5: 2 rollout workers x 2 .* launcher: loc"
    ):
        needs_of(recipe(workers=2, t=2), nodes, True)
    with pytest.raises(ConfigError, match="needs 3 GPUs on one node, and the cluster's largest has 2"):
        needs_of(recipe(workers=1, t=3), nodes, True)
    with pytest.raises(ConfigError, match=r"16 CPUs and 1 GPUs .* no division"):
        needs_of(recipe(ranks=2, t=2), [{"CPU": 16.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 2.0}, {"GPU": 1.0}], True)


def test_a_run_without_an_engine_needs_no_worker() -> None:
    one_gpu = [{"CPU": 8.0, "GPU": 1.0}]
    with pytest.raises(ConfigError, match="has 1 GPUs, and the recipe needs 2"):
        needs_of(recipe(), one_gpu, True)
    needs = needs_of(recipe(), one_gpu, False)
    assert (needs.workers, needs.gpus, needs.rank_cpus) == (0, 1, 8)


def test_nccl_on_a_cluster_without_gpus_is_refused() -> None:
    on_gpus = parse_recipe(
        {"name": "n", "model": "m", "steps": 1, "data": {"train": "t.jsonl"}, "transfer": {"backend": "nccl"}}
    )
    with pytest.raises(ConfigError, match="the cluster has no GPU"):
        needs_of(on_gpus, cpus(8), True)


def test_tensor_parallel_ranks_share_the_cores_of_their_worker() -> None:
    group: Any = object.__new__(type("Group", (), {}))
    options = actor_options(recipe(), "rollout-0", 8, 0, group, 0, 4)
    assert options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "2"
    assert actor_options(recipe(), "rollout-0", 8, 0, group, 0)["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "8"

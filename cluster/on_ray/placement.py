"""What a run takes of a cluster, and whether the cluster's machines can hold it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from volley.cluster.recipe.config import Recipe
from volley.rollout.errors import ConfigError

MOST_CPUS = 16
EPSILON = 1e-6


@dataclass(frozen=True)
class Needs:
    """What a run asks of a cluster. worker_cpus, rank_cpus: of one worker, one rank; gpus likewise."""

    workers: int
    ranks: int
    worker_cpus: float
    rank_cpus: float
    worker_gpus: int
    rank_gpus: int

    @property
    def cpus(self) -> float:
        return self.workers * self.worker_cpus + self.ranks * self.rank_cpus

    @property
    def gpus(self) -> int:
        return self.workers * self.worker_gpus + self.ranks * self.rank_gpus


def needs_of(recipe: Recipe, nodes: Sequence[Mapping[str, float]], has_engine: bool) -> Needs:
    """What the recipe takes of a cluster with these nodes. nodes: {"CPU": n, "GPU": n} of each. has_engine: whether the
    run has rollout workers at all. Raises `ConfigError` when the cluster has less, or its nodes cannot hold it."""
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    learner, config = recipe.learner, recipe.cluster
    if recipe.transfer.backend == "nccl" and not gpus:
        raise ConfigError(
            "transfer.backend is nccl, but the cluster has no GPU; set transfer.backend: auto (gloo on CPUs)."
        )
    workers = recipe.rollout.workers if has_engine else 0
    share = max(1, min(MOST_CPUS, int(cpus / (workers + learner.ranks))))
    needs = Needs(
        workers,
        learner.ranks,
        config.worker_cpus or share,
        config.rank_cpus or share,
        recipe.rollout.tensor_parallel if gpus else 0,
        1 if gpus else 0,
    )
    _check_totals(needs, cpus, gpus)
    # What is given to each by an equal share may not add up on every node; less may.
    for smaller in range(share, 0, -1):
        tried = replace(needs, worker_cpus=config.worker_cpus or smaller, rank_cpus=config.rank_cpus or smaller)
        if _fits(tried, nodes):
            return tried
    largest = int(max(node.get("GPU", 0.0) for node in nodes))
    if workers and needs.worker_gpus > largest:
        raise ConfigError(
            f"a rollout worker needs {needs.worker_gpus} GPUs on one node, and the cluster's largest has {largest}; "
            "lower rollout.tensor_parallel, or add a larger node."
        )
    have = " + ".join(
        f"{node.get('CPU', 0.0):g} CPUs" + (f" and {node['GPU']:g} GPUs" if node.get("GPU") else "") for node in nodes
    )
    raise ConfigError(
        f"the cluster's nodes have {have}, and no division of the run among them fits: {_by_role(needs)}, each on one "
        "node; lower cluster.worker_cpus, cluster.rank_cpus or their numbers, or add nodes."
    )


def transport_of(recipe: Recipe, needs: Needs) -> str:
    """The weight-transfer backend: nccl between GPUs, gloo between CPUs."""
    if recipe.transfer.backend != "auto":
        return recipe.transfer.backend
    return "nccl" if needs.rank_gpus else "gloo"


def _check_totals(needs: Needs, cpus: float, gpus: float) -> None:
    shared = ", or set launcher: local, where learner and engine share one"
    for what, has, worker, rank, need, instead in (
        ("GPUs", gpus, needs.worker_gpus, needs.rank_gpus, needs.gpus, shared),
        ("CPUs", cpus, needs.worker_cpus, needs.rank_cpus, needs.cpus, ""),
    ):
        if need > has + EPSILON:
            raise ConfigError(
                f"the cluster has {has:g} {what}, and the recipe needs {need:g}: {needs.workers} rollout workers x "
                f"{worker:g} + {needs.ranks} learner ranks x {rank:g}; lower rollout.workers, rollout.tensor_parallel "
                f"or learner.ranks, or add nodes{instead}."
            )


def _by_role(needs: Needs) -> str:
    def each(number: int, what: str, cpus: float, gpus: int) -> str:
        return f"{number} {what} x {cpus:g} CPUs" + (f" and {gpus} GPUs" if gpus else "")

    parts = [each(needs.workers, "rollout workers", needs.worker_cpus, needs.worker_gpus)] if needs.workers else []
    return " + ".join([*parts, each(needs.ranks, "learner ranks", needs.rank_cpus, needs.rank_gpus)])


def _fits(needs: Needs, nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether all workers and ranks find a place, each whole on one node.

    most[w]: the ranks that the nodes so far can hold beside w workers. Exact, because there are two kinds only.
    """
    most = {0: 0}
    for node in nodes:
        after: dict[int, int] = {}
        for placed, ranks in most.items():
            for here in range(needs.workers - placed + 1):
                cpus = node.get("CPU", 0.0) - here * needs.worker_cpus
                gpus = node.get("GPU", 0.0) - here * needs.worker_gpus
                if cpus < -EPSILON or gpus < -EPSILON:
                    break
                total = ranks + _places(cpus, gpus, needs)
                after[placed + here] = max(total, after.get(placed + here, 0))
        most = after
    return most.get(needs.workers, 0) >= needs.ranks


def _places(cpus: float, gpus: float, needs: Needs) -> int:
    """How many ranks this much holds."""
    by_cpus = int(cpus / needs.rank_cpus + EPSILON)
    return min(by_cpus, int(gpus / needs.rank_gpus + EPSILON)) if needs.rank_gpus else by_cpus

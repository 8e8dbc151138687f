"""The resources that a run needs from a Ray cluster, and whether the cluster's nodes can provide them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from volley.cluster.recipe.config import Recipe
from volley.rollout.errors import ConfigError

MAX_CPUS = 16
"""Upper limit of the CPUs that a worker or rank gets when the recipe does not set a number."""
EPSILON = 1e-6


@dataclass(frozen=True)
class ResourcePlan:
    """The resources that a run reserves: `workers` rollout workers and `ranks` learner ranks, each on one node."""

    workers: int
    ranks: int
    worker_cpus: float
    """CPUs of one rollout worker."""
    rank_cpus: float
    """CPUs of one learner rank."""
    worker_gpus: int
    """GPUs of one rollout worker."""
    rank_gpus: int
    """GPUs of one learner rank."""
    scoring_cpus: float = 0
    """CPUs of the scoring actor on each node that has rollout workers; 0 if scoring stays on the driver's machine."""

    @property
    def cpus(self) -> float:
        return self.workers * self.worker_cpus + self.ranks * self.rank_cpus

    @property
    def gpus(self) -> int:
        return self.workers * self.worker_gpus + self.ranks * self.rank_gpus

    def describe(self) -> str:
        """The plan by role, for error messages."""

        def role(number: int, name: str, cpus: float, gpus: int) -> str:
            return f"{number} {name} x {cpus:g} CPUs" + (f" and {gpus} GPUs" if gpus else "")

        roles = [role(self.workers, "rollout workers", self.worker_cpus, self.worker_gpus)] if self.workers else []
        return " + ".join([*roles, role(self.ranks, "learner ranks", self.rank_cpus, self.rank_gpus)])


def plan_resources(
    recipe: Recipe, nodes: Sequence[Mapping[str, float]], has_engine: bool, scores_in_processes: bool = False
) -> ResourcePlan:
    """The resources that the recipe takes from a cluster with these nodes.

    nodes: the resources of each node, {"CPU": n, "GPU": n}. has_engine: whether the run has rollout workers at all.
    scores_in_processes: whether its rewards need scoring processes. They get actors on the nodes of the rollout workers
    if there are several nodes and the CPUs suffice; otherwise they stay on the driver's machine.
    Raises `ConfigError` when the cluster has too little in total, or no node has enough for a worker or rank.
    """
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    learner, config = recipe.learner, recipe.cluster
    if recipe.transfer.backend == "nccl" and not gpus:
        raise ConfigError(
            "transfer.backend is nccl, but the cluster has no GPU; set transfer.backend: auto (gloo on CPUs)."
        )
    workers = recipe.rollout.workers if has_engine else 0
    share = max(1, min(MAX_CPUS, int(cpus / (workers + learner.ranks))))
    plan = ResourcePlan(
        workers=workers,
        ranks=learner.ranks,
        worker_cpus=config.worker_cpus or share,
        rank_cpus=config.rank_cpus or share,
        worker_gpus=recipe.rollout.tensor_parallel if gpus else 0,
        rank_gpus=1 if gpus else 0,
    )
    _check_totals(plan, cpus, gpus)
    has_actors = scores_in_processes and workers > 0 and len(nodes) > 1
    scoring = [float(recipe.scorer.workers or 1), 0.0] if has_actors else [0.0]
    # An equal share of the total may not fit on every node; a smaller one may.
    candidates = [(smaller, cpus) for smaller in range(share, 0, -1) for cpus in scoring]
    if recipe.scorer.workers:
        # Scoring processes that the user asked for are worth a smaller share; the default number is not.
        candidates.sort(key=lambda candidate: -candidate[1])
    for smaller, scoring_cpus in candidates:
        candidate = replace(
            plan,
            worker_cpus=config.worker_cpus or smaller,
            rank_cpus=config.rank_cpus or smaller,
            scoring_cpus=scoring_cpus,
        )
        if _fits(candidate, nodes):
            return candidate
    largest = int(max(node.get("GPU", 0.0) for node in nodes))
    if workers and plan.worker_gpus > largest:
        raise ConfigError(
            f"a rollout worker needs {plan.worker_gpus} GPUs on one node, and the cluster's largest has {largest}; "
            "lower rollout.tensor_parallel, or add a larger node."
        )
    available = " + ".join(
        f"{node.get('CPU', 0.0):g} CPUs" + (f" and {node['GPU']:g} GPUs" if node.get("GPU") else "") for node in nodes
    )
    raise ConfigError(
        f"the cluster's nodes have {available}, and the run does not fit: each of {plan.describe()} must be on one "
        "node; lower cluster.worker_cpus, cluster.rank_cpus or the number of workers or ranks, or add nodes."
    )


def choose_transport(recipe: Recipe, plan: ResourcePlan) -> str:
    """The weight-transfer backend: nccl between GPUs, gloo between CPUs."""
    if recipe.transfer.backend != "auto":
        return recipe.transfer.backend
    return "nccl" if plan.rank_gpus else "gloo"


def _check_totals(plan: ResourcePlan, cpus: float, gpus: float) -> None:
    share_one = ", or set launcher: local, where learner and engine share one"
    for resource, available, worker, rank, needed, alternative in (
        ("GPUs", gpus, plan.worker_gpus, plan.rank_gpus, plan.gpus, share_one),
        ("CPUs", cpus, plan.worker_cpus, plan.rank_cpus, plan.cpus, ""),
    ):
        if needed > available + EPSILON:
            raise ConfigError(
                f"the cluster has {available:g} {resource}, and the recipe needs {needed:g}: {plan.workers} rollout "
                f"workers x {worker:g} + {plan.ranks} learner ranks x {rank:g}; lower rollout.workers, "
                f"rollout.tensor_parallel or learner.ranks, or add nodes{alternative}."
            )


def _fits(plan: ResourcePlan, nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether every worker and every rank fits on a node.

    most_ranks[w]: the largest number of ranks that fit on the nodes seen so far together with w workers. The result is
    exact, because there are only two kinds of actor.
    """
    most_ranks = {0: 0}
    for node in nodes:
        after: dict[int, int] = {}
        for placed, ranks in most_ranks.items():
            for here in range(plan.workers - placed + 1):
                cpus = node.get("CPU", 0.0) - here * plan.worker_cpus - (plan.scoring_cpus if here else 0)
                gpus = node.get("GPU", 0.0) - here * plan.worker_gpus
                if cpus < -EPSILON or gpus < -EPSILON:
                    break
                total = ranks + _ranks_that_fit(cpus, gpus, plan)
                after[placed + here] = max(total, after.get(placed + here, 0))
        most_ranks = after
    return most_ranks.get(plan.workers, 0) >= plan.ranks


def _ranks_that_fit(cpus: float, gpus: float, plan: ResourcePlan) -> int:
    by_cpus = int(cpus / plan.rank_cpus + EPSILON)
    return min(by_cpus, int(gpus / plan.rank_gpus + EPSILON)) if plan.rank_gpus else by_cpus

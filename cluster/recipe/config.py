"""The recipe: typed, parsed once, with one clear sentence for every mistake in it.

Each section is a dataclass of the package that owns it. This module combines them and checks what no section can check
alone, such as the batch arithmetic.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import volley
from volley.cluster.recipe.parse import apply_override, parse, read_yaml
from volley.cluster.recipe.stages import stage_names, stage_of
from volley.learner.config import LearnerConfig, SignalConfig
from volley.rewards.code.verifier import check_budgets
from volley.rewards.config import RewardConfig, ScorerConfig
from volley.rollout.config import DataConfig, RolloutConfig, TransferConfig
from volley.rollout.errors import ConfigError, require_at_least

RECIPES = Path(volley.__file__).parent / "recipes"
"""The shipped recipes."""
RUNS_VARIABLE = "VOLLEY_RUNS"
RUNS = Path(os.environ.get(RUNS_VARIABLE, "runs"))
LAUNCHERS = ("local", "ray")
CLUSTER_STALENESS = 2
"""The default max_staleness for `launcher: ray`: workers and ranks have their own devices, so neither should wait."""


@dataclass(frozen=True)
class EvalConfig:
    """How held-out data is evaluated."""

    max_prompts: int = 0
    """Rows of the test set that are used; 0: all."""
    samples: int = 0
    """Responses per prompt for pass@k and maj@k, sampled at `temperature`; 0: greedy only."""
    temperature: float = 1.0
    max_tokens: int = 0
    """0: rollout.max_tokens."""
    length_buckets: int = 4
    """Number of response-length buckets for which accuracy is reported."""

    def __post_init__(self) -> None:
        require_at_least(self, {"max_prompts": 0, "samples": 0, "max_tokens": 0, "length_buckets": 1}, "eval.")
        if self.samples and self.temperature <= 0:
            raise ConfigError(f"eval.temperature is {self.temperature}; eval.samples needs a temperature above 0.")


@dataclass(frozen=True)
class ReferenceConfig:
    """The frozen reference policy of losses that have one."""

    refresh_every: int = 0
    """Steps after which the current policy becomes the reference; 0: it stays the initial model."""

    def __post_init__(self) -> None:
        if self.refresh_every < 0:
            raise ConfigError(f"reference.refresh_every is {self.refresh_every}; it must be 0 (never) or more.")


@dataclass(frozen=True)
class ClusterConfig:
    """Options of `launcher: ray`."""

    address: str = ""
    """A running cluster ("auto": the one on this machine, or that of RAY_ADDRESS). "" starts a private cluster on this
    machine, which ends with the run."""
    allow_unauthenticated: bool = False
    """Also run on a cluster without authentication, which runs anyone's code."""
    worker_cpus: float = 0.0
    """Cores of one rollout worker; 0: an equal share, at most 16."""
    rank_cpus: float = 0.0
    """Cores of one learner rank; 0: an equal share, at most 16."""
    start_s: float = 900.0
    """How long a worker or rank may take to load the model."""
    stall_s: float = 180.0
    """How long an engine with requests in flight may make no step, and a learner rank may not answer (at least 30 s),
    before it counts as hung."""
    max_restarts: int = 3
    """Of one worker in a row."""
    metrics: bool = True
    """Export the run's metrics to Ray's metrics. A private cluster never does, because nothing reads them there."""

    def __post_init__(self) -> None:
        for name in ("start_s", "stall_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"cluster.{name} is {getattr(self, name)}; it must be above 0.")
        require_at_least(self, {"worker_cpus": 0, "rank_cpus": 0, "max_restarts": 0}, "cluster.")


@dataclass(frozen=True)
class ParityConfig:
    """Agreement of learner and engine on log-probs, measured after a push."""

    first_pushes: int = 3
    """Number of pushes at the start of a run that are measured."""
    every: int = 0
    """Afterwards, pushes between measurements; 0: none."""
    bound: float = 0.05
    """Mean |difference| in nats above which the run stops."""

    def __post_init__(self) -> None:
        if self.first_pushes < 0 or self.every < 0:
            raise ConfigError("parity.first_pushes and parity.every must be 0 or more.")
        if self.bound <= 0:
            raise ConfigError(f"parity.bound is {self.bound}; it must be above 0.")


@dataclass(frozen=True)
class StopConfig:
    """Targets that end the run early, with success. 0: never."""

    pass_at_1: float = 0.0
    """Stop when an evaluation reaches it."""
    indistinguishable: float = 0.0
    """Stop after a round of a pair loss with a refreshed reference (SPIN) in which the preference accuracy stayed below
    this value, see `volley.cluster.loop.rounds.distinguishability`; 0.5 is chance."""

    def __post_init__(self) -> None:
        for name in ("pass_at_1", "indistinguishable"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"stop_at.{name} is {getattr(self, name)}; it must be between 0 and 1.")


@dataclass(frozen=True)
class LossConfig:
    """The loss and its options."""

    name: str = "grpo"
    """One of `volley.learner.losses.LOSSES`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of that loss, checked by the loss itself."""


@dataclass(frozen=True)
class Recipe:
    """One run."""

    name: str
    """The run's directory below runs/."""
    model: str
    data: DataConfig
    steps: int
    """Optimizer steps."""
    groups_per_step: int = 32
    """Prompts per optimizer step."""
    seed: int = 0
    max_staleness: int = 0
    """Weight versions that a sample may be old. The default for `launcher: ray` is 2."""
    publish_every: int = 1
    """Steps between weight pushes."""
    save_every: int = 0
    """Steps between checkpoints; 0: only at the end."""
    eval_every: int = 0
    """Steps between evaluations; 0: only before the first step and at the end."""
    keep_checkpoints: int = 2
    """Number of checkpoints that are kept, the newest ones."""
    save_rollouts: bool = True
    """Write every step's samples to Parquet."""
    deadline_s: float = 1800.0
    """How long anything may take (the next group, an update, a push, an evaluation, a checkpoint) before the run stops
    with an error that names it."""
    launcher: str = "local"
    trust_remote_code: bool = False
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: tuple[RewardConfig, ...] = ()
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    signal: SignalConfig = field(default_factory=SignalConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    parity: ParityConfig = field(default_factory=ParityConfig)
    stop_at: StopConfig = field(default_factory=StopConfig)
    wandb: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ConfigError(f"name is '{self.name}'; use letters, digits, '.', '_' and '-' (it names runs/NAME).")
        at_least = {
            "steps": 1,
            "groups_per_step": 1,
            "max_staleness": 0,
            "publish_every": 1,
            "save_every": 0,
            "eval_every": 0,
            "keep_checkpoints": 1,
        }
        require_at_least(self, at_least)
        if self.deadline_s <= 0:
            raise ConfigError(f"deadline_s is {self.deadline_s}; it must be above 0.")
        if self.launcher not in LAUNCHERS:
            raise ConfigError(f"launcher is '{self.launcher}'; it must be one of {', '.join(LAUNCHERS)}.")
        labels = [term.label for term in self.rewards]
        for label in labels:
            if labels.count(label) > 1:
                raise ConfigError(f"rewards: duplicate reward label '{label}'; rename one of them.")
        if sum(term.accuracy for term in self.rewards) > 1:
            raise ConfigError("rewards: more than one term has accuracy: true; only one can decide what is correct.")
        check_budgets(self.rewards, self.scorer.timeout_s)
        self._check_arithmetic()

    def _check_arithmetic(self) -> None:
        if self.launcher == "local" and (self.learner.ranks > 1 or self.rollout.workers > 1):
            raise ConfigError(
                f"learner.ranks is {self.learner.ranks} and rollout.workers is {self.rollout.workers}; the local "
                "launcher runs one of each in one process, so set both to 1, or use launcher: ray."
            )
        for name, deadline_s in {
            "cluster.stall_s": self.cluster.stall_s,
            **{f"transfer.{name}": getattr(self.transfer, name) for name in ("connect_s", "transfer_s", "commit_s")},
        }.items():
            if self.launcher == "ray" and deadline_s >= self.deadline_s:
                raise ConfigError(
                    f"{name} is {deadline_s:g} and deadline_s is {self.deadline_s:g}; a worker that hangs must be "
                    f"detected before the run stops, so set {name} below deadline_s."
                )
        if self.publish_every > self.steps:
            raise ConfigError(
                f"publish_every is {self.publish_every} but the run has only {self.steps} steps, so new weights would "
                "never be pushed; lower publish_every or raise steps."
            )
        if self.eval_every and not self.data.test:
            raise ConfigError("eval_every is set but data.test names no test data; add data.test or set eval_every: 0.")
        if self.reference.refresh_every > self.steps:
            raise ConfigError(
                f"reference.refresh_every is {self.reference.refresh_every} but the run has only {self.steps} steps, "
                "so the reference would never be refreshed; lower refresh_every or raise steps."
            )
        if self.stop_at.indistinguishable and self.reference.refresh_every < 2:
            raise ConfigError(
                "stop_at.indistinguishable needs rounds of at least 2 steps, because policy and reference are equal at "
                f"the start of a round; set reference.refresh_every, which is {self.reference.refresh_every}, to 2 or "
                "more."
            )
        if self.stop_at.pass_at_1 and not self.eval_every:
            raise ConfigError("stop_at.pass_at_1 needs evaluations during the run; set eval_every.")

    @property
    def directory(self) -> Path:
        return RUNS / self.name


def load_recipe(path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `key=value` overrides (`rollout.max_tokens=64`; values are YAML).

    For a recipe with stages, the override `stage=NAME` selects one.
    """
    content = read_content(path, overrides)
    stage = content.pop("stage", None)
    if stage is not None:
        content = stage_of(content, str(stage), RUNS)
    elif names := stage_names(content):
        raise ConfigError(f"recipe '{path}' has stages; add stage=NAME, which is one of {', '.join(names)}.")
    return parse_recipe(content)


def read_content(path: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping in a recipe file with overrides applied, not yet checked. A path that does not exist may be the name
    of a recipe in `recipes/`."""
    file = Path(path)
    if not file.is_file():
        shipped = {each.stem: each for each in sorted(RECIPES.glob("*.yaml"))}
        if path not in shipped:
            raise ConfigError(
                f"recipe '{path}' does not exist; give the path of a YAML file, or the name of a shipped recipe: "
                f"{', '.join(shipped)}."
            )
        file = shipped[path]
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe '{path}' cannot be read ({error}).") from None
    content = read_yaml(text, path)
    if not isinstance(content, dict):
        raise ConfigError(f"recipe '{path}' holds no keys; a recipe is a YAML mapping such as 'name: my-run'.")
    for override in overrides:
        # `loss: grpo` is short for `loss: {name: grpo}`, so that an option can be added.
        if override.startswith("loss.") and isinstance(content.get("loss"), str):
            content["loss"] = {"name": content["loss"]}
        apply_override(content, override)
    return content


def parse_recipe(content: Mapping[str, Any]) -> Recipe:
    """The typed recipe of a parsed YAML mapping. Keys next to a loss's name are collected as its options."""
    content = dict(content)
    if content.get("launcher") == "ray":
        content.setdefault("max_staleness", CLUSTER_STALENESS)
    loss = content.get("loss")
    if isinstance(loss, str):
        content["loss"] = {"name": loss}
    elif isinstance(loss, dict) and "options" not in loss:
        content["loss"] = {
            "name": loss.get("name", "grpo"),
            "options": {key: value for key, value in loss.items() if key != "name"},
        }
    rewards = content.get("rewards")
    if isinstance(rewards, list):
        content["rewards"] = [{"name": term} if isinstance(term, str) else term for term in rewards]
    recipe: Recipe = parse(Recipe, content, "")
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, with defaults. `load_recipe` reads it back as the same recipe."""
    content = _plain(dataclasses.asdict(recipe))
    content["loss"] = {"name": recipe.loss.name, **recipe.loss.options}
    return yaml.safe_dump(content, sort_keys=False, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value

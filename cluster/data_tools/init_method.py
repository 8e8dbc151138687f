"""Choose the method that `volley init` proposes, explain it, and estimate its memory in copies of the model.

The choices are rules of thumb from papers and practice; `--loss` overrides them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from volley.cluster.data_tools.audit_checks import DESCRIPTIONS, DESIRABLE, SMALL_PAIRS, weight_range
from volley.cluster.data_tools.data_kind import SPIN, fitting
from volley.cluster.recipe.dry_run import BYTES_PER_WEIGHT
from volley.learner.losses import LOSSES
from volley.learner.losses.guide import Guide
from volley.rollout.errors import ConfigError
from volley.rollout.model_files import inspect_model

SPIN_GUIDE = Guide(
    "SPIN",
    merit="SPIN trains the model to prefer the responses in the data over its own, round by round, and stops when "
    "the two are indistinguishable; use it on a model that was already trained with SFT (--spin)",
    options="beta: 0.1",
    comment="prefers the response in the data over the policy's own",
    lr=5e-7,
)
SPIN_LOSS = "dpo"
TARGET_RATIO = 7 / 6  # the middle of the range that the KTO paper recommends


@dataclass(frozen=True, slots=True)
class Method:
    """The proposed method and how to describe it in a recipe."""

    name: str
    """The name of a loss, or "spin"."""
    is_sampled: bool
    """Whether the policy samples completions during training."""
    why: str
    """Sentences that explain the choice to the user."""
    others: str
    """A sentence that lists the alternatives, or ""."""
    loss: str
    """The value of `loss:` in the recipe, as YAML."""
    lr: str
    """Peak learning rate."""

    @property
    def display(self) -> str:
        return guide_of(self.name).title

    @property
    def epochs(self) -> int:
        """Passes over offline data."""
        return guide_of(self.name).epochs

    @property
    def needs_reference(self) -> bool:
        return LOSSES[loss_of(self.name)]().needs_reference


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """The options of `volley init` that select a method."""

    concise: bool = False
    low_memory: bool = False
    spin: bool = False
    loss: str = ""
    """The name of a loss, or "spin". With "" the method is chosen from the data."""


def methods() -> tuple[str, ...]:
    """The names of all methods."""
    return (*LOSSES, SPIN)


def loss_of(name: str) -> str:
    """The loss of a method."""
    return SPIN_LOSS if name == SPIN else name


def guide_of(name: str) -> Guide:
    """What users read about a method."""
    return SPIN_GUIDE if name == SPIN else LOSSES[name].guide


def choose(
    kind: str, num_rows: int, options: MethodOptions, labels: Sequence[bool] = (), has_answers: bool = True
) -> Method:
    """Choose the method for data of a kind (one of `data_kind.KINDS`).

    Raises `ConfigError` for options that do not fit the data.
    """
    name = _requested(kind, options) or _default(kind, num_rows)
    is_sampled = kind in ("answers", "prompts") or name == SPIN
    return Method(
        name,
        is_sampled,
        _why(kind, name, num_rows, options, has_answers),
        _others(kind, name),
        _kto_line(labels) if name == "kto" else _loss_line(kind, name),
        _yaml_float(guide_of(name).lr),
    )


def cost(method: Method, model: str) -> str:
    """Describe the copies of the model in memory, for bf16 and one rank. `--dry-run` reports exact numbers."""
    n, about = _num_parameters(model)
    weight = BYTES_PER_WEIGHT["bf16"]
    # Weights and gradients in bf16; AdamW's two moments and the master weights in float32.
    trained = 2 * weight + 12
    copies = [f"the model being trained{_gib(trained * n, about)}"]
    if method.is_sampled:
        copies.append(f"the rollout engine's copy{_gib(weight * n, about)} with its KV cache")
    if method.is_sampled and method.needs_reference:
        copies.append(f"the reference model{_gib(weight * n, about)}")
    text = ("one copy of the model: " if len(copies) == 1 else f"{len(copies)} copies of the model: ") + _listed(copies)
    if not method.needs_reference:
        text += "; no reference model"
    elif not method.is_sampled:
        text += "; reference log-probs are precomputed before the first step, so no reference model stays in memory"
    return f"{text}. Activations need additional memory"


def _requested(kind: str, options: MethodOptions) -> str:
    """The method that the user requested, or ""."""
    values = {"--concise": options.concise, "--low-memory": options.low_memory, "--spin": options.spin}
    flags = [flag for flag, is_set in values.items() if is_set]
    name = options.loss.lower()
    if name and flags:
        raise ConfigError(f"--loss {name} and {flags[0]} both select the method; remove one of them.")
    if options.spin and len(flags) > 1:
        raise ConfigError(f"--spin and {flags[0]} select different methods; remove one of them.")
    if flags:
        # SimPO has no reference model either, so it satisfies --concise and --low-memory together.
        name = SPIN if options.spin else "simpo" if options.concise else "orpo"
    if not name:
        return ""
    supported = ", ".join(fitting(kind))
    if name not in methods():
        raise ConfigError(f"--loss {name}: unknown method; methods for your data: {supported}.")
    if name not in fitting(kind):
        option, title = flags[0] if flags else f"--loss {name}", guide_of(name).title
        raise ConfigError(
            f"{option}: {title} cannot train on rows with {DESCRIPTIONS[kind]}; supported methods: {supported}."
        )
    return name


def _default(kind: str, num_rows: int) -> str:
    if kind == "pairs":
        return "ipo" if num_rows < SMALL_PAIRS else "dpo"
    return {"labels": "kto", "demonstrations": "sft"}.get(kind, "grpo")


def _why(kind: str, name: str, num_rows: int, options: MethodOptions, has_answers: bool) -> str:
    if kind in ("answers", "prompts"):
        found = (
            "The data has answers that a reward can check"
            if has_answers
            else "The data has no answers, but a reward can score responses"
        )
        how = LOSSES[name].signal.how
        if not how:
            return f"{found}, so the model learns from its own samples."
        return f"{found}, so the model learns from its own samples, {how}. {_merit(name)}."
    reason = (
        f"{_merit(name)}." if name != "sft" else "The data contains full responses, so the model is trained on them."
    )
    if options.loss:
        return f"Selected with --loss. {reason}"
    return f"You have {num_rows:,} pairs. {reason}" if kind == "pairs" else reason


def _others(kind: str, name: str) -> str:
    """A sentence that lists the other methods for this kind of data."""
    if kind in ("answers", "prompts"):
        return f"Alternatives (--loss): {', '.join(each for each in fitting(kind) if each != name)}."
    others = [_merit(each) for each in fitting(kind) if each != name]
    return f"Alternatives (--loss): {'. '.join(others)}." if others else ""


def _merit(name: str) -> str:
    return guide_of(name).merit.format(small_pairs=f"{SMALL_PAIRS:,}")


def _loss_line(kind: str, name: str) -> str:
    """The value of `loss:` with the options that the guide shows."""
    guide, loss = guide_of(name), loss_of(name)
    if not guide.options:
        return f"{{name: {loss}}}"
    similar = [each for each in fitting(kind) if each != name and not LOSSES[loss_of(each)].signal.columns]
    comment = guide.comment or f"or {', '.join(similar)}"
    return f"{{name: {loss}, {guide.options}}} ## {comment}"


def _yaml_float(value: float) -> str:
    """5e-07 as "5.0e-7"."""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def _kto_line(labels: Sequence[bool]) -> str:
    """KTO's loss with class weights if the classes are imbalanced."""
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    desirable = sum(labels)
    comment = "weights of the two classes in the loss"
    if labels and 0 < desirable < len(labels):
        share = desirable / len(labels)
        comment = f"{share:.0%} of your rows are desirable"
        if not DESIRABLE[0] <= share <= DESIRABLE[1]:
            key, low, high = weight_range(desirable, len(labels) - desirable)
            weights[key] = float(f"{high / TARGET_RATIO if key == 'undesirable_weight' else low * TARGET_RATIO:.3g}")
            comment += "; the weight compensates for the imbalance"
    return f"{{name: kto, beta: 0.1, {', '.join(f'{key}: {value}' for key, value in weights.items())}}} ## {comment}"


def _num_parameters(model: str) -> tuple[int, str]:
    """The number of parameters, and "about " if it was guessed from the model's name; 0 if unknown."""
    path = Path(model).expanduser()
    if path.is_dir():
        return inspect_model(path).num_parameters, ""
    size = re.search(r"(?<![\d.A-Za-z])(\d+(?:\.\d+)?)([BbMm])(?![A-Za-z])", model)
    return (int(float(size[1]) * (1e9 if size[2] in "Bb" else 1e6)), "about ") if size else (0, "")


def _gib(size: float, about: str) -> str:
    """A size in parentheses, or "" if unknown. Three significant digits also show the size of tiny models."""
    return f" ({about}{size / 2**30:.3g} GiB)" if size else ""


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

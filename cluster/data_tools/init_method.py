"""Choose the method that `volley init` proposes, explain it, and estimate its memory in copies of the model.

The choices are rules of thumb from papers and practice; `--loss` overrides them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from volley.cluster.data_tools.audit_checks import DESCRIPTIONS, DESIRABLE, SMALL_PAIRS, weight_range
from volley.cluster.data_tools.data_kind import FITTING, SAMPLED
from volley.cluster.recipe.build import ENGINE_DTYPES
from volley.rollout.errors import ConfigError
from volley.rollout.model_files import inspect_model

DISPLAY = {
    "grpo": "GRPO",
    "dr_grpo": "Dr. GRPO",
    "dapo": "DAPO",
    "gspo": "GSPO",
    "cispo": "CISPO",
    "rloo": "RLOO",
    "reinforce_pp": "REINFORCE++",
    "ppo": "PPO",
    "dpo": "DPO",
    "ipo": "IPO",
    "simpo": "SimPO",
    "orpo": "ORPO",
    "kto": "KTO",
    "sft": "SFT",
    "spin": "SPIN",
}
MERITS = {
    "dpo": "DPO increases the probability of the chosen response over the rejected one relative to a reference model; "
    f"it is the default for {SMALL_PAIRS:,} pairs or more",
    "ipo": f"IPO optimizes towards a fixed margin, so it overfits less than DPO on fewer than {SMALL_PAIRS:,} pairs",
    "simpo": "SimPO normalizes by length, so longer responses have no advantage; use it for concise responses "
    "(--concise)",
    "orpo": "ORPO combines SFT on the chosen response with a preference term and needs no reference model; use it when "
    "memory is limited (--low-memory)",
    "kto": "KTO learns from single responses labelled good or bad, without pairs",
    "sft": "SFT trains on the responses in the data; it is the default and the first step before most other methods",
    "spin": "SPIN trains the model to prefer the responses in the data over its own, round by round, and stops when "
    "the two are indistinguishable; use it on a model that was already trained with SFT (--spin)",
}
LINES = {
    "grpo": "{name: grpo, clip_low: 0.2, clip_high: 0.28} ## or dr_grpo, dapo, gspo, cispo, rloo, reinforce_pp, ppo",
    "dpo": "{name: dpo, beta: 0.1} ## beta: strength of the KL regularization towards the reference",
    "ipo": "{name: ipo, tau: 0.1, reduction: sum} ## the target margin is 1 / (2 tau) nats",
    "simpo": "{name: simpo, beta: 10.0, gamma: 1.0} ## gamma: target margin; keep it small relative to beta",
    "orpo": "{name: orpo, odds_weight: 0.1} ## weight of the preference term relative to SFT",
    "spin": "{name: dpo, beta: 0.1} ## prefers the response in the data over the policy's own",
}
RATES = {"dpo": "5.0e-7", "ipo": "5.0e-7", "kto": "5.0e-7", "spin": "5.0e-7", "simpo": "1.0e-6", "orpo": "8.0e-6"}
PASSES = {"sft": 2, "ipo": 3}
"""Epochs over offline data for methods whose default is not 1. Methods that overfit sooner get fewer epochs."""
REFERENCED = ("dpo", "ipo", "kto", "spin")
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
        return DISPLAY[self.name]

    @property
    def needs_reference(self) -> bool:
        return self.name in REFERENCED


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """The options of `volley init` that select a method."""

    concise: bool = False
    low_memory: bool = False
    spin: bool = False
    loss: str = ""
    """The name of a loss, or "spin". With "" the method is chosen from the data."""


def choose(
    kind: str, num_rows: int, options: MethodOptions, labels: Sequence[bool] = (), has_answers: bool = True
) -> Method:
    """Choose the method for data of a kind (one of `data_kind.KINDS`).

    Raises `ConfigError` for options that do not fit the data.
    """
    name = _requested(kind, options) or _default(kind, num_rows)
    is_sampled = kind in ("answers", "prompts") or name == "spin"
    return Method(
        name,
        is_sampled,
        _why(kind, name, num_rows, options, has_answers),
        _others(kind, name),
        _kto_line(labels) if name == "kto" else LINES.get(name, f"{{name: {name}}}"),
        RATES.get(name, "1.0e-5" if name == "sft" else "1.0e-6"),
    )


def cost(method: Method, model: str) -> str:
    """Describe the copies of the model in memory, for bf16 and one rank. `--dry-run` reports exact numbers."""
    n, about = _num_parameters(model)
    weight = ENGINE_DTYPES["bf16"]
    # Weights and gradients in bf16; AdamW's two moments and the master weights in float32.
    trained = 2 * weight + 12
    copies = [f"the model being trained{_gib(trained * n, about)}"]
    if method.is_sampled:
        copies.append(f"the rollout engine's copy{_gib(weight * n, about)} plus KV cache")
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
        name = "spin" if options.spin else "simpo" if options.concise else "orpo"
    if not name:
        return ""
    if name not in DISPLAY:
        raise ConfigError(f"--loss {name}: unknown method; methods for your data: {', '.join(FITTING[kind])}.")
    if name not in FITTING[kind]:
        option, fitting = flags[0] if flags else f"--loss {name}", ", ".join(FITTING[kind])
        raise ConfigError(
            f"{option}: {DISPLAY[name]} cannot train on rows with {DESCRIPTIONS[kind]}; supported methods: {fitting}."
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
        if name in SAMPLED:
            return f"{found}, so the model learns from its own samples."
        how = "labelled by their rewards" if name == "kto" else "pairing the best with the worst"
        return f"{found}, so the model learns from its own samples, {how}. {MERITS[name]}."
    reason = (
        f"{MERITS[name]}." if name != "sft" else "The data contains full responses, so the model is trained on them."
    )
    if options.loss:
        return f"Selected with --loss. {reason}"
    return f"You have {num_rows:,} pairs. {reason}" if kind == "pairs" else reason


def _others(kind: str, name: str) -> str:
    """A sentence that lists the other methods for this kind of data."""
    if kind in ("answers", "prompts"):
        return f"Alternatives (--loss): {', '.join(each for each in FITTING[kind] if each != name)}."
    others = [MERITS[each] for each in FITTING[kind] if each != name]
    return f"Alternatives (--loss): {'. '.join(others)}." if others else ""


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

"""Which method `volley init` proposes for a kind of data, why, and what it costs in copies of the model.

A rule of thumb for each, from the papers and from practice; `--loss` overrides all of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from volley.cluster.data_tools.audit_checks import DESIRABLE, SMALL_PAIRS, WORDS, weight_range
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
    "dpo": "DPO raises the chosen answer above the rejected one, measured against the starting model: the plain "
    f"choice from {SMALL_PAIRS:,} pairs on",
    "ipo": f"IPO stops at a fixed margin, where DPO learns fewer than {SMALL_PAIRS:,} pairs by heart and widens its "
    "own without end",
    "simpo": "SimPO divides the length out, so that longer answers have no advantage: the choice for concise answers "
    "(--concise)",
    "orpo": "ORPO imitates the chosen answer and prefers it at once, and needs no reference model: the choice where "
    "memory is short (--low-memory)",
    "kto": "KTO learns from single answers that are labelled good or bad, without pairs",
    "sft": "SFT imitates the answers of the data: the plain choice, and the first step of most others",
    "spin": "SPIN learns to tell the data's answers from the model's own, round by round, and stops when it cannot: "
    "for a model that has been through SFT already (--spin)",
}
LINES = {
    "grpo": "{name: grpo, clip_low: 0.2, clip_high: 0.28} ## or dr_grpo, dapo, gspo, cispo, rloo, reinforce_pp, ppo",
    "dpo": "{name: dpo, beta: 0.1} ## beta: how strongly the starting model holds the policy",
    "ipo": "{name: ipo, tau: 0.1, reduction: sum} ## the margin aimed at is 1 / (2 tau) nats",
    "simpo": "{name: simpo, beta: 10.0, gamma: 1.0} ## gamma: the margin; small beside beta, answers stay short",
    "orpo": "{name: orpo, odds_weight: 0.1} ## weight of preferring beside imitating",
    "spin": "{name: dpo, beta: 0.1} ## of the data's answer over the policy's own",
}
RATES = {"dpo": "5.0e-7", "ipo": "5.0e-7", "kto": "5.0e-7", "spin": "5.0e-7", "simpo": "1.0e-6", "orpo": "8.0e-6"}
PASSES = {"sft": 2, "ipo": 3}
"""Passes over a data set's own answers, where they are not 1: what is learned by heart soonest gets the fewest."""
REFERENCED = ("dpo", "ipo", "kto", "spin")
TARGET_RATIO = 7 / 6  # in the middle of what KTO wants


@dataclass(frozen=True, slots=True)
class Method:
    """name: a loss, or "spin". is_sampled: whether the policy answers, too. why, others: sentences for the user.
    loss: the recipe's line. lr: peak learning rate."""

    name: str
    is_sampled: bool
    why: str
    others: str
    loss: str
    lr: str

    @property
    def display(self) -> str:
        return DISPLAY[self.name]

    @property
    def needs_reference(self) -> bool:
        return self.name in REFERENCED


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked `volley init` for. loss: a loss by name, or "spin"; "" leaves the choice to us."""

    concise: bool = False
    low_memory: bool = False
    spin: bool = False
    loss: str = ""


def choose(kind: str, num_rows: int, wishes: Wishes, labels: Sequence[bool] = (), has_answers: bool = True) -> Method:
    """The method for data of a kind (`data_kind.KINDS`). Raises `ConfigError` for a wish that does not fit the data."""
    name = _wished(kind, wishes) or _usual(kind, num_rows)
    is_sampled = kind in ("answers", "prompts") or name == "spin"
    return Method(
        name,
        is_sampled,
        _why(kind, name, num_rows, wishes, has_answers),
        _others(kind, name),
        _kto_line(labels) if name == "kto" else LINES.get(name, f"{{name: {name}}}"),
        RATES.get(name, "1.0e-5" if name == "sft" else "1.0e-6"),
    )


def cost(method: Method, model: str) -> str:
    """One or two sentences on copies of the model in memory: what `--dry-run` counts exactly, for bf16 and one rank."""
    n, about = _num_parameters(model)
    weight = ENGINE_DTYPES["bf16"]
    trained = 2 * weight + 12  # weights and gradients; AdamW's two moments and master weights in float32
    copies = [f"the model in training{_gib(trained * n, about)}"]
    if method.is_sampled:
        copies.append(f"the sampler's copy{_gib(weight * n, about)} and its KV cache")
    if method.is_sampled and method.needs_reference:
        copies.append(f"the reference's{_gib(weight * n, about)}")
    text = ("one copy of the model: " if len(copies) == 1 else f"{len(copies)} copies of the model: ") + _listed(copies)
    if not method.needs_reference:
        text += ", no reference"
    elif not method.is_sampled:
        text += "; the reference takes none, its log-probs are recorded in a pass over the data before the first step"
    return f"{text}. Activations come on top"


def _wished(kind: str, wishes: Wishes) -> str:
    """The method asked for, "" if none."""
    asked = {"--concise": wishes.concise, "--low-memory": wishes.low_memory, "--spin": wishes.spin}
    flags = [flag for flag, is_asked in asked.items() if is_asked]
    name = wishes.loss.lower()
    if name and flags:
        raise ConfigError(f"--loss {name} and {flags[0]} both choose the method; leave one of them out.")
    if wishes.spin and len(flags) > 1:
        raise ConfigError(f"--spin and {flags[0]} choose different methods; leave one of them out.")
    if flags:
        # SimPO has no reference either, so it does for both wishes.
        name = "spin" if wishes.spin else "simpo" if wishes.concise else "orpo"
    if not name:
        return ""
    if name not in DISPLAY:
        raise ConfigError(f"--loss {name}: there is no such method; your data fits {', '.join(FITTING[kind])}.")
    if name not in FITTING[kind]:
        asked_with, fitting = flags[0] if flags else f"--loss {name}", ", ".join(FITTING[kind])
        raise ConfigError(f"{asked_with}: {DISPLAY[name]} does not fit rows with {WORDS[kind]}; these fit: {fitting}.")
    return name


def _usual(kind: str, num_rows: int) -> str:
    if kind == "pairs":
        return "ipo" if num_rows < SMALL_PAIRS else "dpo"
    return {"labels": "kto", "demonstrations": "sft"}.get(kind, "grpo")


def _why(kind: str, name: str, num_rows: int, wishes: Wishes, has_answers: bool) -> str:
    if kind in ("answers", "prompts"):
        found = "Answers can be checked" if has_answers else "There are no answers, but a reward can judge"
        if name in SAMPLED:
            return f"{found}, so the model learns from its own attempts."
        how = "labelled by their rewards" if name == "kto" else "best against worst"
        return f"{found}, so the model learns from its own attempts, {how}. {MERITS[name]}."
    reason = (
        f"{MERITS[name]}." if name != "sft" else "Your data shows whole responses, so the model learns to imitate them."
    )
    if wishes.loss:
        return f"You asked for it. {reason}"
    return f"You have {num_rows:,} pairs. {reason}" if kind == "pairs" else reason


def _others(kind: str, name: str) -> str:
    """What else the data fits, a sentence each."""
    if kind in ("answers", "prompts"):
        return f"Others for such data, with --loss: {', '.join(each for each in FITTING[kind] if each != name)}."
    others = [MERITS[each] for each in FITTING[kind] if each != name]
    return f"Others for such data, with --loss: {'; '.join(others)}." if others else ""


def _kto_line(labels: Sequence[bool]) -> str:
    """With weights for the classes of the data, where they are far from balanced."""
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    desirable = sum(labels)
    comment = "weights of good and bad answers in the loss"
    if labels and 0 < desirable < len(labels):
        share = desirable / len(labels)
        comment = f"{share:.0%} of your rows are desirable"
        if not DESIRABLE[0] <= share <= DESIRABLE[1]:
            key, low, high = weight_range(desirable, len(labels) - desirable)
            weights[key] = float(f"{high / TARGET_RATIO if key == 'undesirable_weight' else low * TARGET_RATIO:.3g}")
            comment += ", hence the weight: it makes up for the rarer class"
    return f"{{name: kto, beta: 0.1, {', '.join(f'{key}: {value}' for key, value in weights.items())}}} ## {comment}"


def _num_parameters(model: str) -> tuple[int, str]:
    """Of a model directory; else as its name says, "about"; 0 if that says nothing."""
    path = Path(model).expanduser()
    if path.is_dir():
        return inspect_model(path).num_parameters, ""
    size = re.search(r"(?<![\d.A-Za-z])(\d+(?:\.\d+)?)([BbMm])(?![A-Za-z])", model)
    return (int(float(size[1]) * (1e9 if size[2] in "Bb" else 1e6)), "about ") if size else (0, "")


def _gib(size: float, about: str) -> str:
    """Three digits suffice for an estimate, and tiny models are not nothing."""
    return f" ({about}{size / 2**30:.3g} GiB)" if size else ""


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

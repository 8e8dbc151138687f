"""From a recipe to the checked parts of a run, before anything heavy starts.

Everything that a user can get wrong is checked here, the cheapest first: the recipe's numbers, the model's files, the
data, the loss, the rewards, and finally the tokenized prompts.
"""

import dataclasses
import hashlib
import typing
from dataclasses import dataclass
from typing import Any

from volley.cluster.recipe.config import Recipe
from volley.cluster.recipe.parse import parse
from volley.learner.losses import LOSSES
from volley.learner.losses.common import Loss
from volley.learner.signals.batch import Signal
from volley.learner.signals.demonstrations import Demonstrations
from volley.rewards.scoring.preflight import check_rewards
from volley.rollout.data.dataset_groups import DatasetGroups
from volley.rollout.data.prompts import PromptSet
from volley.rollout.data.rows import Rows, column_names, read_rows
from volley.rollout.errors import ConfigError, ModelError
from volley.rollout.model_files import ModelFacts, inspect_model, resolve_model
from volley.rollout.types import Prompt

MAX_PROMPT_TOKENS = 4096


@dataclass(frozen=True)
class RunParts:
    """The checked parts of a run."""

    recipe: Recipe
    model: ModelFacts
    tokenizer: Any
    loss: Loss
    prompts: PromptSet
    """The prompts of the training data."""
    dataset: DatasetGroups | None
    """The completions of the training data; None if the policy samples all of them."""
    is_sampled: bool
    """True if the policy samples completions."""
    test_prompts: tuple[Prompt, ...]
    """Held-out prompts to be answered and scored, in file order."""
    test_dataset: DatasetGroups | None
    """Held-out rows with completions; None if rewards evaluate the policy."""
    max_model_len: int
    """The maximum number of prompt + completion tokens."""

    @property
    def needs_engine(self) -> bool:
        return self.is_sampled or bool(self.test_prompts)

    @property
    def records_reference(self) -> bool:
        """True if the reference never changes and all rows that it will see are known before the first step."""
        return self.loss.needs_reference and not self.is_sampled and not self.recipe.reference.refresh_every

    @property
    def lineage(self) -> dict[str, str]:
        """Fingerprints of what must not change between a checkpoint and its resume."""
        data = self.dataset or self.prompts
        return {"data": data.fingerprint[:16], "model": _model_fingerprint(self.model), "seed": str(self.recipe.seed)}


def prepare(recipe: Recipe) -> RunParts:
    """Check everything and read the data. Raises a `VolleyError` that names the mistake."""
    loss = build_loss(recipe)
    completions = _completions(recipe, loss)
    is_sampled, has_dataset = completions != "dataset", completions != "policy"
    if is_sampled and recipe.rollout.group_size < (1 if has_dataset else loss.min_group_size):
        raise ConfigError(
            f"rollout.group_size is {recipe.rollout.group_size}, but {recipe.loss.name} compares a group's completions "
            f"with each other; set it to at least {loss.min_group_size}."
        )
    facts = inspect_model(resolve_model(recipe.model), recipe.trust_remote_code)
    _check_attention(facts)
    recipe = _with_prompt_limit(recipe, facts, is_sampled)
    scored = ("prompt", "answer") if any(term.name == "math" for term in recipe.rewards) else ("prompt",)
    signal = Demonstrations if completions == "both" else loss.signal
    needed = ("prompt", *signal.columns) if has_dataset else scored
    rows = read_rows(recipe.data.train, recipe.data.columns, needed)
    measures = has_dataset and not is_sampled and not recipe.rewards
    test_needed = needed if measures else scored
    test_rows = read_rows(recipe.data.test, recipe.data.columns, test_needed) if recipe.data.test else None
    scored_together = 0 if has_dataset else recipe.rollout.group_size
    check_rewards(recipe.rewards, _columns(test_rows if has_dataset else rows), scored_together)
    if recipe.data.test and not recipe.rewards and not measures:
        raise ConfigError("data.test is given but there are no rewards to evaluate with; add rewards.")
    tokenizer = load_tokenizer(facts)
    prompts = PromptSet(rows, tokenizer, recipe.data, recipe.seed)
    dataset = None
    if has_dataset:
        dataset = DatasetGroups(prompts, tokenizer, signal.read, facts.max_length, recipe.data.on_long)
    test_prompts: tuple[Prompt, ...] = ()
    test_dataset = None
    if test_rows is not None:
        held_out = PromptSet(test_rows, tokenizer, recipe.data, recipe.seed)
        if measures:
            test_dataset = DatasetGroups(held_out, tokenizer, signal.read, facts.max_length, recipe.data.on_long)
        else:
            test_prompts = tuple(held_out.in_order())[: recipe.eval.max_prompts or None]
    max_model_len = recipe.data.max_prompt_tokens + max(recipe.rollout.max_tokens, recipe.eval.max_tokens)
    return RunParts(
        recipe, facts, tokenizer, loss, prompts, dataset, is_sampled, test_prompts, test_dataset, max_model_len
    )


def _completions(recipe: Recipe, loss: Loss) -> str:
    """Where completions come from: "dataset", "policy" or "both". Raises `ConfigError` for a contradiction."""
    name, chosen = recipe.loss.name, recipe.data.completions
    names = column_names(recipe.data.train, recipe.data.columns)
    signal = loss.signal
    fits = [each for each in _data_signals() if names.issuperset(each.columns)]
    if chosen == "auto":
        chosen = "dataset" if signal.columns else "policy"
        # If both are possible, a data set with all columns that the loss reads is meant to be learned from.
        if signal.from_policy and signal not in fits and recipe.rewards:
            chosen = "policy"
    if not signal.columns and chosen != "policy":
        raise ConfigError(
            f"data.completions is '{chosen}', but {name} learns from the policy's own samples; remove it."
        )
    if chosen == "both" and not signal.compares:
        raise ConfigError(
            f"data.completions is 'both', which makes pairs of the data's completion and the policy's, but {name} does "
            f"not read pairs; use one of {_comparing_losses()}."
        )
    if chosen == "policy" and not signal.from_policy:
        raise ConfigError(f"data.completions is 'policy', but {name} imitates a data set's completions; remove it.")
    # Data that fits no loss lacks a column, and reading it reports which one.
    if chosen == "dataset" and signal not in fits and (fits or signal.from_policy):
        columns = signal.columns
        other = f"; it fits {', '.join(_losses_of(each) for each in fits)}" if fits else ""
        instead = (
            "" if not signal.from_policy else f", or give rewards, so that {name} learns from the policy's own samples"
        )
        raise ConfigError(
            f"{recipe.data.train}: {name} reads the column{'s' * (len(columns) > 1)} {' and '.join(columns)}, and "
            f"there are {', '.join(sorted(names))}{other}. Name the columns with data.columns{instead}."
        )
    if chosen == "policy" and not recipe.rewards:
        raise ConfigError(f"the recipe has no rewards, but {name} learns from them; add for instance rewards: [math].")
    if chosen == "both" and recipe.rewards and not recipe.data.test:
        raise ConfigError(
            "data.completions is 'both': the data's completion has reward 1 and the policy's 0, so rewards have no "
            "effect; remove them."
        )
    return chosen


def _data_signals() -> list[type[Signal]]:
    """The signals that data sets can give, those with the fewest columns first."""
    signals = dict.fromkeys(kind.signal for kind in LOSSES.values() if kind.signal.columns)
    return sorted(signals, key=lambda signal: len(signal.columns))


def _losses_of(signal: type[Signal]) -> str:
    return ", ".join(name for name, kind in LOSSES.items() if kind.signal is signal)


def _comparing_losses() -> str:
    return ", ".join(name for name, kind in LOSSES.items() if kind.signal.compares)


def build_loss(recipe: Recipe) -> Loss:
    """The loss of a recipe with its options, checked."""
    name, options = recipe.loss.name, dict(recipe.loss.options)
    if name not in LOSSES:
        raise ConfigError(f"loss.name is '{name}'; it must be one of {', '.join(LOSSES)}.")
    kind = LOSSES[name]
    if "max_tokens" in typing.get_type_hints(kind) and not options.get("max_tokens"):
        options["max_tokens"] = recipe.rollout.max_tokens
    loss: Loss = parse(kind, options, "loss")
    if recipe.reference.refresh_every and not loss.needs_reference:
        raise ConfigError(f"reference.refresh_every is set, but {name} as configured has no reference; remove it.")
    if recipe.stop_at.indistinguishable and not loss.signal.compares:
        raise ConfigError(
            f"stop_at.indistinguishable is set, but {name} does not read pairs; remove it, or use "
            f"one of {_comparing_losses()}."
        )
    return loss


def load_tokenizer(facts: ModelFacts) -> Any:
    """The model's tokenizer."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(facts.path)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model: the tokenizer of '{facts.path}' does not load ({error}); save it again.") from None


def _with_prompt_limit(recipe: Recipe, facts: ModelFacts, is_sampled: bool) -> Recipe:
    """Set data.max_prompt_tokens, or refuse a value that leaves no room for the completion."""
    # Without rewards the test set is scored by the loss, not answered.
    samples = is_sampled or (recipe.data.test and recipe.rewards)
    completion = max(recipe.rollout.max_tokens, recipe.eval.max_tokens) if samples else 1
    room = facts.max_length - completion
    limit = recipe.data.max_prompt_tokens
    if room < 1 or limit > room:
        raise ConfigError(
            f"data.max_prompt_tokens ({limit or 'at least 1'}) + max_tokens ({completion}) is more than the "
            f"{facts.max_length} tokens that '{recipe.model}' takes; lower one of them."
        )
    data = dataclasses.replace(recipe.data, max_prompt_tokens=limit or min(room, MAX_PROMPT_TOKENS))
    return dataclasses.replace(recipe, data=data)


def _check_attention(facts: ModelFacts) -> None:
    """Refuse models that vLLM's CPU attention loads but cannot run: it crashes at the first request."""
    import torch

    if facts.head_dim % 32 and not torch.cuda.is_available():
        raise ModelError(
            f"model: '{facts.path}' has a head_dim of {facts.head_dim}, and vLLM's attention on CPUs needs a multiple "
            "of 32; use another model, or a GPU."
        )


def _columns(rows: Rows | None) -> set[str]:
    return set(rows.values[0]) if rows is not None else set()


def _model_fingerprint(facts: ModelFacts) -> str:
    digest = hashlib.sha256((facts.path / "config.json").read_bytes())
    digest.update(f"{facts.num_parameters}".encode())
    return digest.hexdigest()[:16]

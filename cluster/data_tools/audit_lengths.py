"""The length checks of `volley audit`: chosen against rejected responses, and rows that exceed the model's limit."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volley.cluster.data_tools.audit_report import Finding
from volley.cluster.data_tools.audit_table import Table
from volley.rollout.config import RolloutConfig
from volley.rollout.data.chat import render_chat
from volley.rollout.errors import ModelError, VolleyError
from volley.rollout.model_files import inspect_model

MAX_PAIRS = 2_000
"""Pairs that are tokenized to compare chosen with rejected."""
MAX_CANDIDATES = 10_000
"""Rows that are tokenized to count those over the limit."""
BATCH_SIZE = 1_024
SMALL_EFFECT = 0.2  # Cohen's convention
LARGE_SHARE = 0.6
CHAT_BYTES = 256
"""Upper bound of what a chat template adds to a message. Shorter rows fit without tokenizing them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Lengths in tokens above which training drops a row."""

    prompt: int
    row: int
    """Prompt, completion and end token together."""


def check_lengths(table: Table, model: str) -> Iterator[Finding]:
    """Lengths of chosen against rejected responses, and rows that are too long for the model."""
    tokenizer, max_length = _tokenizer(model) if model else (None, 0)
    if table.kind == "pairs":
        step = max(1, len(table) // MAX_PAIRS) if tokenizer else 1
        sides = [table.texts[part][::step] for part in ("chosen", "rejected")]
        chosen, rejected = (_num_tokens(tokenizer, side) if tokenizer else list(map(len, side)) for side in sides)
        sampled = f" in {len(chosen):,} of the pairs" if step > 1 else ""
        yield length_gap(chosen, rejected, f"tokens{sampled}" if tokenizer else "characters")
    yield _truncation(table, tokenizer, max_length) if tokenizer else _longest_row(table)


def length_gap(chosen: Sequence[int], rejected: Sequence[int], unit: str) -> Finding:
    """Compare the lengths of chosen and rejected responses and predict the effect on a model trained with DPO.

    DPO sums log-ratios over tokens. If one side is usually longer, length separates the sides and is learned along
    with quality (arXiv 2403.19159). Numbers reported:

    - effect_size: mean difference over its standard deviation (Cohen's d of paired values);
    - longer_share: accuracy of always preferring the longer side; ties count half.
    """
    long, short = np.asarray(chosen, float), np.asarray(rejected, float)
    gaps = long - short
    share = float((gaps > 0).mean() + (gaps == 0).mean() / 2)
    spread = float(gaps.std())
    effect = float(gaps.mean()) / spread if spread else math.copysign(math.inf, gaps.mean()) if gaps.any() else 0.0
    medians = float(np.median(long)), float(np.median(short))
    numbers = {
        "chosen_median": medians[0],
        "rejected_median": medians[1],
        "gap_median": float(np.median(gaps)),
        "longer_share": share,
        "effect_size": effect,
    }
    found = (
        f"chosen has {medians[0]:,.0f} {unit} (median), rejected {medians[1]:,.0f}; chosen is longer in {share:.0%} of "
        f"the pairs (effect size {effect:+.2f})"
    )
    # Two standard errors: a smaller gap can be chance.
    certain = abs(effect) > 2 / math.sqrt(len(gaps)) or abs(share - 0.5) > 1 / math.sqrt(len(gaps))
    if not certain or (abs(effect) < SMALL_EFFECT and 1 - LARGE_SHARE < share < LARGE_SHARE):
        return Finding("length gap", "ok", f"{found}: too small to be learned instead of quality", numbers=numbers)
    if effect > 0:
        found += f": preferring the longer one is right in {share:.0%}, so DPO will make responses longer"
        fix = (
            "use SimPO, which normalizes by length (volley init --concise), or remove pairs until both sides are "
            "longer equally often; monitor the response length during training"
        )
    else:
        found += f": preferring the shorter one is right in {1 - share:.0%}, so DPO will make responses shorter"
        fix = (
            "if you want shorter responses, monitor accuracy by length bucket; otherwise use SimPO, which normalizes "
            "by length, or remove pairs until both sides are longer equally often"
        )
    return Finding("length gap", "warn", found, fix, numbers)


def _tokenizer(model: str) -> tuple[Any, int]:
    """The model's tokenizer and maximum length. The weights of a hub model are not downloaded."""
    from transformers import AutoConfig, AutoTokenizer

    path = Path(model).expanduser()
    try:
        if path.is_dir():
            return AutoTokenizer.from_pretrained(path), inspect_model(path).max_length
        config = AutoConfig.from_pretrained(model).get_text_config()
        return AutoTokenizer.from_pretrained(model), getattr(config, "max_position_embeddings", 1 << 30)
    except VolleyError:
        raise
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model: cannot load the tokenizer of '{model}' ({reason}); give a model directory or a hub name."
        ) from None


def _longest_row(table: Table) -> Finding:
    """The longest row in characters, for an audit without a model."""
    longest = max(range(len(table)), key=lambda i: sum(_num_characters(table, i)))
    prompt, completion = _num_characters(table, longest)
    found = (
        f"not checked without a tokenizer; the longest row has {prompt + completion:,} characters ({prompt:,} in the "
        f"prompt), at {table.where(longest)}; use --model to count tokens against the model's limit"
    )
    return Finding("truncation", "ok", found, numbers={"characters_max": float(prompt + completion)})


def _truncation(table: Table, tokenizer: Any, max_length: int) -> Finding:
    """Rows that training drops with its default settings.

    These are prompts that leave no room for a response (if responses are sampled) and rows that are longer than the
    model with their end token.
    """
    from volley.cluster.recipe.prepare import MAX_PROMPT_TOKENS

    response = 1 if table.completions else min(RolloutConfig().max_tokens, max_length // 2)
    limits = Limits(min(MAX_PROMPT_TOKENS, max_length - response), max_length)
    is_chat = getattr(tokenizer, "chat_template", None) is not None
    all_candidates = _candidates(table, limits, is_chat)
    step = max(1, math.ceil(len(all_candidates) / MAX_CANDIDATES))
    candidates = all_candidates[::step]
    too_long, longest = [], 0
    for start in range(0, len(candidates), BATCH_SIZE):
        batch = candidates[start : start + BATCH_SIZE]
        for index, (prompt, completion) in zip(batch, _row_tokens(table, batch, tokenizer, is_chat), strict=True):
            longest = max(longest, prompt + completion)
            if prompt + completion > limits.row or prompt > limits.prompt:
                too_long.append(index)
    num_over = min(len(table), len(too_long) * step)
    numbers: dict[str, float] = {
        "limit": limits.row,
        "prompt_limit": limits.prompt,
        "rows": num_over,
        "tokens_max": longest,
    }
    allowed = f"{limits.prompt:,} prompt tokens" + (f", {limits.row:,} in total" if table.completions else "")
    if not too_long:
        found = f"none of {len(candidates):,} sampled rows" if step > 1 else "no row"
        return Finding("truncation", "ok", f"{found} exceeds the limit ({allowed})", numbers=numbers)
    estimated = f" (estimated from {len(candidates):,})" if step > 1 else ""
    found = (
        f"{num_over:,} of {len(table):,} rows{estimated}, {num_over / len(table):.1%}, exceed the limit ({allowed}); "
        f"the longest has {longest:,} tokens, the first is at {table.where(too_long[0])}"
    )
    fix = (
        "training drops and counts these rows (data.on_long), which biases it towards shorter ones; shorten them, or "
        "use a model with a longer context"
    )
    return Finding("truncation", "warn", found, fix, numbers)


def _candidates(table: Table, limits: Limits, is_chat: bool) -> list[int]:
    """Rows that may exceed the limits. A token has at least one byte, so rows with few bytes need no tokenizer."""
    candidates = []
    for i in range(len(table)):
        num_messages = 0 if isinstance(table.prompts[i], str) else len(table.prompts[i])
        reserve = CHAT_BYTES * (num_messages or is_chat)
        prompt, completion = _num_characters(table, i)
        # Counting characters is cheaper than encoding; a character has at most 4 bytes.
        if 4 * (prompt + completion) > limits.row - 1 - reserve or 4 * prompt > limits.prompt - reserve:
            prompt, completion = _num_bytes(table, i)
            if prompt + completion > limits.row - 1 - reserve or prompt > limits.prompt - reserve:
                candidates.append(i)
    return candidates


def _num_characters(table: Table, index: int) -> tuple[int, int]:
    """Characters of a row's prompt and of its longest completion."""
    completions = (len(table.texts[part][index]) for part in table.completions)
    return len(table.texts["prompt"][index]), max(completions, default=0)


def _num_bytes(table: Table, index: int) -> tuple[int, int]:
    """Bytes of a row's prompt and of its longest completion."""
    completions = (len(table.texts[part][index].encode()) for part in table.completions)
    return len(table.texts["prompt"][index].encode()), max(completions, default=0)


def _row_tokens(table: Table, indices: Sequence[int], tokenizer: Any, is_chat: bool) -> list[tuple[int, int]]:
    """Tokens of the prompt and of the longest completion with its end token, for some rows."""
    prompts = _num_tokens(tokenizer, [_prompt_text(table, i, tokenizer if is_chat else None) for i in indices])
    completions = [_num_tokens(tokenizer, [table.texts[part][i] for i in indices]) for part in table.completions]
    return [(prompt, max((side[k] + 1 for side in completions), default=0)) for k, prompt in enumerate(prompts)]


def _prompt_text(table: Table, index: int, chat_tokenizer: Any) -> str:
    """The prompt as text, rendered with the model's chat template if it has one."""
    prompt = table.prompts[index]
    if chat_tokenizer is None:
        return table.texts["prompt"][index]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return render_chat(chat_tokenizer, messages, table.where(index))


def _num_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    ids: list[list[int]] = []
    for start in range(0, len(texts), BATCH_SIZE):
        batch = list(texts[start : start + BATCH_SIZE])
        ids += tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [len(each) for each in ids]

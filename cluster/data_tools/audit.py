"""`volley audit`: what in a data set would spoil training, what it predicts, and how to mend it, before anything runs.

Rows are read and compared in seconds; nothing is trained or sampled. With a model's tokenizer, lengths are counted in
tokens: those of a sample, and for truncation those of rows that could reach the model's limit.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from volley.cluster.data_tools.audit_checks import (
    check_answers,
    check_duplicates,
    check_empty,
    check_labels,
    check_pairs,
    check_rows,
    leakage,
    length_gap,
)
from volley.cluster.data_tools.audit_report import Finding
from volley.cluster.data_tools.audit_table import Table, make_table
from volley.cluster.data_tools.data_kind import find_kind
from volley.rollout.config import RolloutConfig
from volley.rollout.data.chat import render_chat
from volley.rollout.data.rows import read_rows
from volley.rollout.errors import ConfigError, ModelError, VolleyError
from volley.rollout.model_files import inspect_model

SAMPLE = 2_000
TOKENISED = 10_000
BATCH_SIZE = 1_024
CHAT_BYTES = 256
"""What a chat template adds to a message, at most, so that a text so much below the limit need not be tokenised."""


def audit(
    data: str, model: str = "", test: str = "", columns: Mapping[str, str] | None = None
) -> tuple[list[Finding], Table]:
    """Look at the data set `data` (as `read_rows` takes it). columns: our name -> the data's, for names
    that are not found by themselves. test: the held-out data set, for leakage.

    Raises `DataError` for data that cannot be read at all or has no prompts; `ModelError` for a broken model.
    """
    table = _table(data, columns or {})
    findings = [*check_rows(table)]
    if len(table):
        findings += [*check_empty(table), *check_duplicates(table), *check_pairs(table), *check_labels(table)]
        findings += [*check_answers(table), *_lengths(table, model)]
        if test:
            findings.append(leakage(table, _table(test, columns or {})))
    return findings, table


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """`["prompt=question"]` as our name -> the data's. Raises `ConfigError`."""
    columns = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise ConfigError(f"--columns {pair}: write our name = the data's name, for instance prompt=question.")
        columns[ours] = theirs
    return columns


def _table(data: str, columns: Mapping[str, str]) -> Table:
    rows = read_rows(data, {}, ())
    return make_table(rows, find_kind(rows, columns))


def _lengths(table: Table, model: str) -> Iterator[Finding]:
    """Chosen against rejected, and rows that the model cannot take."""
    tokenizer, limit = _tokenizer(model) if model else (None, 0)
    if table.kind == "pairs":
        step = max(1, len(table) // SAMPLE) if tokenizer else 1
        sides = [table.texts[part][::step] for part in ("chosen", "rejected")]
        chosen, rejected = (_num_tokens(tokenizer, side) if tokenizer else list(map(len, side)) for side in sides)
        sampled = f" in {len(chosen):,} of the pairs" if step > 1 else ""
        yield length_gap(chosen, rejected, f"tokens{sampled}" if tokenizer else "characters")
    yield _truncation(table, tokenizer, limit) if tokenizer else _characters(table)


def _tokenizer(model: str) -> tuple[Any, int]:
    """The tokenizer of a model, and how many tokens the model takes. Of a model on the hub no weights are fetched."""
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
            f"model: the tokenizer of '{model}' does not load ({reason}); give a model directory or a hub name."
        ) from None


def _characters(table: Table) -> Finding:
    longest = max(range(len(table)), key=lambda i: sum(_longest(table, i)))
    prompt, completion = _longest(table, longest)
    found = (
        f"not checked, for want of a tokenizer: the longest row has {prompt + completion:,} characters "
        f"({prompt:,} of prompt), at {table.where(longest)}"
    )
    numbers = {"characters_max": float(prompt + completion)}
    return Finding("truncation", "ok", f"{found}; --model counts tokens against its limit", numbers=numbers)


def _longest(table: Table, index: int) -> tuple[int, int]:
    """Characters of a row's prompt and of its longest completion."""
    completions = (len(table.texts[part][index]) for part in table.completions)
    return len(table.texts["prompt"][index]), max(completions, default=0)


def _truncation(table: Table, tokenizer: Any, limit: int) -> Finding:
    """Rows that training drops with its defaults: prompts that leave no room for an answer where answers are sampled,
    rows that are longer than the model with their end token. A token is at least one byte, so what has no more bytes
    than it may have tokens fits, and of the others `TOKENISED` at most are tokenised."""
    from volley.cluster.recipe.build import MAX_PROMPT_TOKENS

    is_chat = getattr(tokenizer, "chat_template", None) is not None
    answer = 1 if table.completions else min(RolloutConfig().max_tokens, limit // 2)
    prompt_limit = min(MAX_PROMPT_TOKENS, limit - answer)
    candidates = []
    for i in range(len(table)):
        messages = 0 if isinstance(table.prompts[i], str) else len(table.prompts[i])
        spare = CHAT_BYTES * (messages or is_chat)
        prompt, completion = _longest(table, i)
        if 4 * (prompt + completion) > limit - 1 - spare or 4 * prompt > prompt_limit - spare:
            prompt, completion = _num_bytes(table, i)
            if prompt + completion > limit - 1 - spare or prompt > prompt_limit - spare:
                candidates.append(i)
    step = max(1, math.ceil(len(candidates) / TOKENISED))
    candidates = candidates[::step]
    over, longest = [], 0
    for start in range(0, len(candidates), BATCH_SIZE):
        some = candidates[start : start + BATCH_SIZE]
        prompts = _num_tokens(tokenizer, [_prompt(table, i, tokenizer if is_chat else None) for i in some])
        completions = [_num_tokens(tokenizer, [table.texts[part][i] for i in some]) for part in table.completions]
        for k, (i, num_prompt) in enumerate(zip(some, prompts, strict=True)):
            length = num_prompt + max((side[k] + 1 for side in completions), default=0)
            longest = max(longest, length)
            if length > limit or num_prompt > prompt_limit:
                over.append(i)
    num_over = min(len(table), len(over) * step)
    numbers: dict[str, float] = {"limit": limit, "prompt_limit": prompt_limit, "rows": num_over, "tokens_max": longest}
    sampled = f" (estimated from {len(candidates):,})" if step > 1 else ""
    limits = f"{prompt_limit:,} tokens of prompt" + (f", {limit:,} with an answer" if table.completions else "")
    if not over:
        found = f"none of {len(candidates):,} rows looked at" if sampled else "no row"
        return Finding("truncation", "ok", f"{found} is longer than training takes: {limits}", numbers=numbers)
    found = (
        f"{num_over:,} of {len(table):,} rows{sampled}, {num_over / len(table):.1%}, are longer than training takes "
        f"({limits}); the longest has {longest:,}, the first at {table.where(over[0])}"
    )
    mend = "training drops and counts them (data.on_long), so what is left is shorter; shorten them, or take a model "
    return Finding("truncation", "warn", found, f"{mend}that takes more", numbers)


def _num_bytes(table: Table, index: int) -> tuple[int, int]:
    """Bytes of a row's prompt and of its longest completion."""
    completions = (len(table.texts[part][index].encode()) for part in table.completions)
    return len(table.texts["prompt"][index].encode()), max(completions, default=0)


def _prompt(table: Table, index: int, chat: Any) -> str:
    """The prompt as text for the tokenizer: under the model's chat template where it has one."""
    prompt = table.prompts[index]
    if chat is None:
        return table.texts["prompt"][index]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return render_chat(chat, messages, table.where(index))


def _num_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    ids: list[list[int]] = []
    for start in range(0, len(texts), BATCH_SIZE):
        some = list(texts[start : start + BATCH_SIZE])
        ids += tokenizer(some, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [len(each) for each in ids]

"""`volley init`: a commented recipe for the user's data, from a look at its columns, answers and lengths.

The model need not be there yet; `volley train RECIPE --dry-run` checks the recipe against it.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from rollout.chat import check_messages
from rollout.errors import DataError
from rollout.model_files import inspect_model
from rollout.rows import Rows, read_rows

DEFAULT_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
PROMPTS = ("prompt", "question", "problem", "query", "instruction", "messages", "input")
ANSWERS = ("answer", "final_answer", "ground_truth", "gold", "solution", "target")
COMPLETIONS = ("completion", "response", "output", "demonstration")
MARKER = "####"
COMMENT_COLUMN = 36
LONG_ANSWER = 200  # characters, above which an answer is a text to imitate rather than a result to check
SYSTEM = "Think step by step inside <think> and </think>, then give the final answer inside \\boxed{}."

# In these templates ` ## ` starts a comment that is to be aligned with its neighbours'.
GRPO = """\
# {seen}
# Proposed method: GRPO. {reason}, so the model learns from its own attempts.
# Check it without starting anything: volley train THIS_FILE --dry-run
name: {name} ## the run is kept in runs/{name}
model: {model} ## a model directory, or a name on the Hugging Face hub
seed: 0 ## decides the order of the prompts and every random number
steps: {steps} ## optimizer steps; {epochs} of your data
groups_per_step: {groups} ## prompts per step; each is answered rollout.group_size times
max_staleness: 0 ## weight versions a sample may be old: 0 is synchronous; 1 generates while learning
publish_every: 1 ## steps between pushes of new weights to the sampler
save_every: 50 ## steps between checkpoints (continue with --resume); 0: only at the end
eval_every: {eval_every} ## steps between evaluations on data.test; 0: none
launcher: local ## one process on this machine

data:
  train: {train}
  {test}
  columns: {columns} ## our name: your column; all other columns are handed to the rewards
{answer_after}{chat}  max_prompt_tokens: 0 ## 0: what the model's length leaves beside max_tokens; {lengths}
  on_long: drop ## longer prompts are dropped and counted; "refuse" stops instead

rollout:
  group_size: 8 ## attempts per prompt; they are compared with each other, so at least 2
  temperature: 1.0
  max_tokens: {max_tokens} ## longer responses are cut off there and marked as truncated

{rewards}

loss: {{name: grpo, clip_low: 0.2, clip_high: 0.28}} ## others: dr_grpo, dapo, rloo
{learner}
eval: {{max_prompts: 200, samples: 0, temperature: 1.0}} ## samples: responses per prompt for pass@k and maj@k
"""

SFT = """\
# {seen}
# Proposed method: SFT. Your data shows whole responses, so the model learns to imitate them.
# Check it without starting anything: volley train THIS_FILE --dry-run
name: {name} ## the run is kept in runs/{name}
model: {model} ## a model directory, or a name on the Hugging Face hub
seed: 0 ## decides the order of the rows
steps: {steps} ## optimizer steps; {epochs} of your data
groups_per_step: {groups} ## demonstrations per step
save_every: 50 ## steps between checkpoints (continue with --resume); 0: only at the end
launcher: local ## one process on this machine

data:
  train: {train}
  columns: {columns} ## our name: your column
{chat}  max_prompt_tokens: 0 ## 0: what the model's length leaves beside max_tokens; {lengths}
  on_long: drop ## longer prompts, and rows longer than the model, are dropped and counted

loss: {{name: sft}}
{learner}"""

LEARNER = """
learner:
  dtype: bf16 ## with float32 master weights; fp32 for exact repetition on CPUs
  zero_stage: 1 ## DeepSpeed ZeRO, 0 to 3
  lr: {lr} ## peak learning rate
  warmup_steps: {warmup_steps} ## steps until the learning rate is reached
  max_tokens_per_micro_batch: 16384 ## lower it when memory runs out
  gradient_checkpointing: false ## true saves memory and costs time
"""

MATH_REWARDS = """\
rewards:
  - {name: math, weight: 1.0} ## 1 where the response's final answer equals data's answer, else 0"""

OWN_REWARD = """\
# {why}: write reward.py beside this file and improve it there:
#   def reward(prompt: str, response: str, answer: str, **row) -> float:
#       return {body}
rewards:
  - {{name: "reward.py:reward", weight: 1.0{accuracy}}}"""


@dataclass(frozen=True, slots=True)
class _Look:
    """What the data looks like. method: "grpo" or "sft". columns: our name -> the data's. marker: whether every answer
    has one. checkable: whether answers are numbers or formulas."""

    rows: Rows
    method: str
    columns: dict[str, str]
    marker: bool = False
    checkable: bool = False


def propose(data_path: str, model: str | None = None) -> str:
    """A recipe (YAML with comments) for the data at `data_path`, as `rollout.rows.read_rows` takes it.

    Raises `DataError` for data that no method of this release learns from, and for what is wrong with the data;
    `ModelError` if `model` is a directory with something wrong in it.
    """
    model = model or DEFAULT_MODEL
    look = _look(data_path)
    as_chat = _is_chat_model(model) and isinstance(look.rows.values[0]["prompt"], str)
    groups = min(32, len(look.rows))
    steps = 200 if look.method == "grpo" else math.ceil(2 * len(look.rows) / groups)
    test = _test_file(data_path)
    template = GRPO if look.method == "grpo" else SFT
    text = template.format(
        seen=_seen(look),
        reason="Answers can be checked" if "answer" in look.columns else "There are no answers, but a reward can judge",
        name=_run_name(data_path, look.method),
        model=_quoted(model),
        steps=steps,
        epochs=f"{steps * groups / len(look.rows):,.1f} epochs",
        groups=groups,
        eval_every=25 if test else 0,
        train=_quoted(data_path),
        test=f"test: {_quoted(test)}" if test else "# test: rows held out for evaluation; then set eval_every, too",
        columns="{" + ", ".join(f"{ours}: {_quoted(theirs)}" for ours, theirs in look.columns.items()) + "}",
        answer_after=f'  answer_after: "{MARKER}" ## the gold answer is what follows this\n' if look.marker else "",
        chat=_chat_lines(look, as_chat),
        lengths=_lengths(look.rows),
        max_tokens=_max_tokens(model),
        rewards=_rewards(look, as_chat),
        learner=LEARNER.format(lr="1.0e-6" if look.method == "grpo" else "1.0e-5", warmup_steps=min(10, steps // 10)),
    )
    return "".join(_aligned(line) for line in text.splitlines(keepends=True))


def _look(data_path: str) -> _Look:
    rows = read_rows(data_path, {}, ())
    names = list(dict.fromkeys(name for row in rows.values[:1000] for name in row))
    known = {"prompt": PROMPTS, "answer": ANSWERS, "completion": COMPLETIONS}
    columns = {ours: theirs for ours, candidates in known.items() if (theirs := _find(names, candidates))}
    _refuse_preferences(data_path, names, columns)
    if "prompt" not in columns:
        raise DataError(
            f"{data_path}: none of its columns ({', '.join(names)}) is known as a prompt; call it 'prompt', or write "
            "the recipe by hand with data.columns: {prompt: COLUMN}."
        )
    answer = columns.get("answer", "")
    answers = [str(row[answer]) for row in rows.values if row.get(answer) is not None]
    marker = bool(answers) and all(MARKER in text for text in answers)
    if marker:
        answers = [text.rpartition(MARKER)[2] for text in answers]
    if answer and not _are_texts(answers):
        columns.pop("completion", None)
        return _Look(_checked(data_path, columns), "grpo", columns, marker, _are_formulas(answers))
    if answer:
        del columns["answer"]
        columns.setdefault("completion", answer)
    return _Look(_checked(data_path, columns), "sft" if "completion" in columns else "grpo", columns)


def _checked(data_path: str, columns: dict[str, str]) -> Rows:
    """The rows under our names, every one with all of `columns`, and chats well formed."""
    rows = read_rows(data_path, columns, tuple(columns))
    for index, row in enumerate(rows.values):
        if not isinstance(row["prompt"], str):
            check_messages(row["prompt"], rows.where(index))
    return rows


def _are_texts(answers: Sequence[str]) -> bool:
    """Whether answers are whole texts, to be imitated, rather than results, to be checked."""
    return bool(answers) and median(map(len, answers)) > LONG_ANSWER and not any("\\boxed" in text for text in answers)


def _are_formulas(answers: Sequence[str]) -> bool:
    return sum(bool(re.search(r"\d|\\[a-zA-Z]", text)) for text in answers) > len(answers) / 2


def _refuse_preferences(data_path: str, names: Sequence[str], columns: dict[str, str]) -> None:
    if {"chosen", "rejected"} <= set(names):
        what = "the columns chosen and rejected are for preference losses (DPO and its kin)"
    elif "label" in names and "completion" in columns and "answer" not in columns:
        what = "a completion with a label is for KTO"
    else:
        return
    raise DataError(
        f"{data_path}: {what}, which this release does not have yet; it has GRPO, Dr. GRPO, DAPO and RLOO for prompt + "
        "answer, and SFT for prompt + completion."
    )


def _find(names: Sequence[str], known: Sequence[str]) -> str:
    """The first of `known` among the data's column names, whatever its case; "" if none."""
    lowered = {name.lower(): name for name in reversed(names)}
    return next((lowered[name] for name in known if name in lowered), "")


def _seen(look: _Look) -> str:
    names = ", ".join(map(_quoted, look.columns.values()))
    return f"Written by volley init after a look at {_quoted(look.rows.spec)}: {len(look.rows):,} rows with {names}."


def _run_name(data_path: str, method: str) -> str:
    path = Path(data_path) if Path(data_path).exists() else Path(data_path.partition(":")[0])
    names = (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") for name in (path.stem, path.resolve().parent.name))
    base = next((name for name in names if name and name not in ("train", "data", "main")), "my-run")
    return f"{base}-{method}"


def _test_file(data_path: str) -> str:
    """The held-out file that lies beside a training file, "" if none."""
    path = Path(data_path)
    if "train" not in path.name:
        return ""
    beside = (
        path.with_name(path.name.replace("train", held_out)) for held_out in ("test", "validation", "valid", "dev")
    )
    return next((str(file) for file in beside if file.is_file()), "")


def _is_chat_model(model: str) -> bool:
    path = Path(model).expanduser()
    if not path.is_dir():
        return bool(re.search(r"instruct|chat|-it\b", model, re.IGNORECASE))
    config = path / "tokenizer_config.json"
    return (path / "chat_template.jinja").is_file() or (config.is_file() and '"chat_template"' in config.read_text())


def _characters(prompt: Any) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(str(message)) for message in prompt)


def _lengths(rows: Rows) -> str:
    lengths = [_characters(row["prompt"]) for row in rows.values]
    return f"your prompts have {min(lengths):,} to {max(lengths):,} characters"


def _max_tokens(model: str) -> int:
    """512, or half of what a local model takes."""
    path = Path(model).expanduser()
    return min(512, inspect_model(path).max_length // 2) if path.is_dir() else 512


def _chat_lines(look: _Look, as_chat: bool) -> str:
    if not isinstance(look.rows.values[0]["prompt"], str):
        return ""
    if not as_chat:
        return "  # as_chat: true ## for a chat model: each prompt becomes a user's message\n"
    lines = "  as_chat: true ## each prompt is a user's message, under the model's chat template\n"
    if look.method == "grpo" and look.checkable:
        lines += f"  system: {_quoted(SYSTEM)}\n"
    return lines


def _rewards(look: _Look, as_chat: bool) -> str:
    if look.checkable:
        form = "\n  - {name: think_format, weight: 0.1} ## 1 for <think> ... </think> and then the answer, else 0"
        return MATH_REWARDS + (form if as_chat else "")
    if "answer" in look.columns:
        return OWN_REWARD.format(
            why="Your answers are words, which no built-in reward compares",
            body="float(answer.strip().lower() in response.lower())",
            accuracy=", accuracy: true",
        )
    return OWN_REWARD.format(why="Your data has no answers", body="-abs(len(response) - 200) / 200", accuracy="")


def _quoted(text: str) -> str:
    """`text` as a YAML scalar on one line, quoted where it has to be."""
    style = None if text.isprintable() else '"'
    dumped: str = yaml.safe_dump(
        [text], default_flow_style=True, default_style=style, allow_unicode=True, width=math.inf
    )
    return dumped.strip()[1:-1]


def _aligned(line: str) -> str:
    value, mark, comment = line.rpartition(" ## ")
    return f"{value:<{COMMENT_COLUMN - 1}} # {comment}" if mark else line

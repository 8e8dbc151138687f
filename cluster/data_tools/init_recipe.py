"""`volley init`: write a commented recipe for the user's data, based on its columns, answers and lengths.

The model does not have to exist yet; `volley train RECIPE --dry-run` checks the recipe against it.
"""

import math
import re
from pathlib import Path

import yaml

from volley.cluster.data_tools import init_templates as templates
from volley.cluster.data_tools.audit_table import Table, make_table
from volley.cluster.data_tools.data_kind import MARKER, DataKind, find_kind
from volley.cluster.data_tools.init_method import Method, MethodOptions, choose, cost
from volley.rollout.data.rows import Rows, column_names, read_rows
from volley.rollout.errors import DataError
from volley.rollout.model_files import inspect_model

DEFAULT_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
SYSTEM = "Think step by step inside <think> and </think>, then give the final answer inside \\boxed{}."
ROUNDS = 3


def propose(data_path: str, model: str | None = None, options: MethodOptions | None = None) -> str:
    """Write a recipe (YAML with comments) for the data at `data_path`, in any form that `read_rows` accepts.

    Raises `DataError` for invalid data, `ConfigError` for options that do not fit the data, and `ModelError` if `model`
    is a directory without a valid model.
    """
    model = model or DEFAULT_MODEL
    rows = read_rows(data_path, {}, ())
    kind = find_kind(rows, {})
    table = make_table(rows, kind)
    if table.broken:
        raise DataError(table.broken[0])
    _check_labels(table)
    method = choose(kind.kind, len(rows), options or MethodOptions(), table.labels, "answer" in kind.columns)
    groups = min(32, len(rows))
    per_round = math.ceil(len(rows) / groups)
    steps = _steps(method, len(rows) / groups)
    is_rewarded = method.is_sampled and method.name != "spin"
    is_evaluated = is_rewarded or not method.is_sampled
    test = _test_file(data_path, kind) if is_evaluated else ""
    text = templates.HEAD.format(
        name=_run_name(data_path, method.name),
        model=_quoted(model),
        steps=steps,
        epochs=f"{steps * groups / len(rows):,.1f} epochs",
        groups=groups,
        unit="prompts" if method.is_sampled else "pairs" if kind.kind == "pairs" else "rows",
        schedule=_schedule(method, per_round),
        evaluation=templates.EVALUATION.format(eval_every=25 if test else 0) if is_evaluated else "",
    )
    text += _data(data_path, test, method, kind, table, model)
    if method.is_sampled:
        text += _rollout(method, model)
    if is_rewarded:
        text += _rewards(kind, _as_chat(table, model)) + "\n"
    text += f"loss: {method.loss}\n" + _reference(method, per_round)
    text += templates.LEARNER.format(lr=method.lr, warmup_steps=min(10, steps // 10))
    text += templates.EVAL if is_rewarded else templates.EVAL_OF_DATA if test else ""
    return _header(rows, kind, method, model) + templates.aligned(text)


def _check_labels(table: Table) -> None:
    """Raise `DataError` for the first label that is not true or false."""
    for index, label in enumerate(table.labels):
        if not isinstance(label, bool):
            raise DataError(
                f"{table.where(index)}: the label is {label!r}; it must be true (desirable) or false, without quotes."
            )


def _header(rows: Rows, kind: DataKind, method: Method, model: str) -> str:
    columns = ", ".join(map(_quoted, kind.columns.values()))
    check = "" if kind.kind in ("answers", "prompts") else " Check the data with: volley audit."
    return templates.remarks(
        f"Written by volley init for {_quoted(rows.spec)}: {len(rows):,} rows with columns {columns}.",
        f"Proposed method: {method.display}. {method.why}",
        method.others,
        f"Memory: {cost(method, model)}.",
        f"Validate this recipe without starting a run: volley train THIS_FILE --dry-run.{check}",
    )


def _steps(method: Method, steps_per_pass: float) -> int:
    if method.name == "spin":
        return ROUNDS * math.ceil(steps_per_pass)
    return 200 if method.is_sampled else math.ceil(method.epochs * steps_per_pass)


def _schedule(method: Method, per_round: int) -> str:
    if method.name == "spin":
        return templates.ROUNDS.format(round=per_round)
    return templates.SCHEDULE if method.is_sampled else ""


def _data(data_path: str, test: str, method: Method, kind: DataKind, table: Table, model: str) -> str:
    is_rewarded = method.is_sampled and method.name != "spin"
    line = f"  test: {_quoted(test)}\n" if test else "  # test: held-out rows for evaluation; also set eval_every\n"
    extra = (
        "  completions: both ## the data's response against a sample of the policy\n" if method.name == "spin" else ""
    )
    extra += f'  answer_after: "{MARKER}" ## the reference answer follows this marker\n' if kind.marker else ""
    return templates.DATA.format(
        train=_quoted(data_path),
        test=line if is_rewarded or not method.is_sampled else "",
        columns="{" + ", ".join(f"{ours}: {_quoted(theirs)}" for ours, theirs in kind.columns.items()) + "}",
        kept="; other columns are passed to the rewards" if is_rewarded else "",
        extra=extra + _chat_lines(table, kind, method, model),
        lengths=_lengths(table),
        on_long="drop and count prompts that are too long"
        if is_rewarded
        else "drop and count prompts and rows that are too long",
    )


def _rollout(method: Method, model: str) -> str:
    is_spin = method.name == "spin"
    return templates.ROLLOUT.format(
        group_size=1 if is_spin else 8,
        group_comment="samples per prompt; the data has the other response"
        if is_spin
        else "samples per prompt; at least 2, because they are compared with each other",
        max_tokens=_max_tokens(model),
    )


def _reference(method: Method, per_round: int) -> str:
    if method.name == "spin":
        comment = "steps between updates to the current policy: one round"
        return templates.REFERENCE.format(refresh=per_round, comment=comment) + templates.STOP
    if method.is_sampled and method.needs_reference:
        return templates.REFERENCE.format(refresh=0, comment="steps between updates to the current policy; 0: never")
    return ""


def _run_name(data_path: str, method: str) -> str:
    path = Path(data_path) if Path(data_path).exists() else Path(data_path.partition(":")[0])
    names = (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") for name in (path.stem, path.resolve().parent.name))
    base = next((name for name in names if name and name not in ("train", "data", "main")), "my-run")
    return f"{base}-{method}"


def _test_file(data_path: str, kind: DataKind) -> str:
    """A held-out file next to the training file with the same columns, or ""."""
    path = Path(data_path)
    if "train" not in path.name:
        return ""
    candidates = (
        path.with_name(path.name.replace("train", held_out)) for held_out in ("test", "validation", "valid", "dev")
    )
    wanted = set(kind.columns.values())
    return next((str(file) for file in candidates if file.is_file() and wanted <= column_names(str(file), {})), "")


def _is_chat_model(model: str) -> bool:
    path = Path(model).expanduser()
    if not path.is_dir():
        return bool(re.search(r"instruct|chat|-it\b", model, re.IGNORECASE))
    config = path / "tokenizer_config.json"
    return (path / "chat_template.jinja").is_file() or (config.is_file() and '"chat_template"' in config.read_text())


def _as_chat(table: Table, model: str) -> bool:
    """Whether to wrap plain prompts as user messages."""
    return _is_chat_model(model) and isinstance(table.prompts[0], str)


def _lengths(table: Table) -> str:
    lengths = list(map(len, table.texts["prompt"]))
    return f"your prompts have {min(lengths):,} to {max(lengths):,} characters"


def _max_tokens(model: str) -> int:
    """512, or half the maximum length of a local model if that is less."""
    path = Path(model).expanduser()
    return min(512, inspect_model(path).max_length // 2) if path.is_dir() else 512


def _chat_lines(table: Table, kind: DataKind, method: Method, model: str) -> str:
    if not isinstance(table.prompts[0], str):
        return ""
    if not _as_chat(table, model):
        return "  # as_chat: true ## for a chat model: each prompt becomes a user message\n"
    lines = "  as_chat: true ## each prompt is a user message in the model's chat template\n"
    if method.is_sampled and kind.checkable:
        lines += f"  system: {_quoted(SYSTEM)}\n"
    return lines


def _rewards(kind: DataKind, as_chat: bool) -> str:
    if kind.checkable:
        return templates.MATH_REWARDS + (templates.THINK_REWARD if as_chat else "")
    if "answer" in kind.columns:
        return templates.OWN_REWARD.format(
            why="No built-in reward compares answers in words",
            body="float(answer.strip().lower() in response.lower())",
            accuracy=", accuracy: true",
        )
    return templates.OWN_REWARD.format(
        why="Your data has no answers", body="-abs(len(response) - 200) / 200", accuracy=""
    )


def _quoted(text: str) -> str:
    """`text` as a YAML scalar on one line, quoted if necessary."""
    style = None if text.isprintable() else '"'
    dumped: str = yaml.safe_dump(
        [text], default_flow_style=True, default_style=style, allow_unicode=True, width=math.inf
    )
    return dumped.strip()[1:-1]

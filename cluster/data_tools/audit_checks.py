"""The checks of `volley audit`. Each one is a function from the table to findings, worst first.

Not checked:

- near duplicates with different words (only case, white space, punctuation and Unicode forms are ignored);
- preference cycles longer than two (A > B > C > A);
- whether a preference is correct.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from volley.cluster.data_tools.audit_report import Finding
from volley.cluster.data_tools.audit_table import Keys, Table, combined
from volley.cluster.data_tools.data_kind import fitting

DESCRIPTIONS = {
    "pairs": "a chosen and a rejected response",
    "labels": "a labelled response",
    "answers": "a prompt and its reference answer",
    "demonstrations": "a prompt and a demonstration",
    "prompts": "a prompt",
}
"""Kind of data -> what a row of it has."""
SMALL_PAIRS = 10_000
FEW_ROWS = 100
DESIRABLE = (0.5, 0.7)
"""Share of desirable rows that trains well with equal weights."""
DESIRABLE_FAR = (0.1, 0.9)
"""Outside this range weights are a poor substitute for data."""
KTO_RATIO = (1.0, 4 / 3)
"""Recommended range of (desirable rows * w_D) / (undesirable rows * w_U) (arXiv 2402.01306, section 4)."""


def check_rows(table: Table) -> Iterator[Finding]:
    """The number of rows, and rows that cannot be read."""
    num_rows, num_broken = len(table.rows), len(table.broken)
    found = f"{num_rows:,} rows with {DESCRIPTIONS[table.kind]}; supported methods: {', '.join(fitting(table.kind))}"
    if table.kind == "pairs" and num_rows < SMALL_PAIRS:
        found += f"; with fewer than {SMALL_PAIRS:,} pairs IPO is less prone to overfitting than DPO"
    few = "too few rows for any method; expect overfitting, and collect more data" if num_rows < FEW_ROWS else ""
    yield Finding("rows", "warn" if few else "ok", found, few, {"rows": num_rows})
    if num_broken:
        found = f"{num_broken:,} of {num_rows:,} rows cannot be read, the first: {table.broken[0]}"
        yield Finding(
            "readable", "fail", found, "fix or remove them; training stops at the first one", {"rows": num_broken}
        )


def check_empty(table: Table) -> Iterator[Finding]:
    """Empty prompts, completions and answers."""
    for part, texts in table.texts.items():
        empty = [i for i, text in enumerate(texts) if not text.strip()]
        if empty:
            found = f"{_share(len(empty), len(table))} have an empty {part}, the first at {table.where(empty[0])}"
            yield Finding(f"empty {part}", "fail", found, "remove these rows", {"rows": len(empty)})
    if all(text.strip() for texts in table.texts.values() for text in texts):
        yield Finding("empty texts", "ok", "none")


def check_duplicates(table: Table) -> Iterator[Finding]:
    """Rows and prompts that occur more than once."""
    exact, near = (_row_keys(table, normalised) for normalised in (False, True))
    again, near_again = repeated(exact), repeated(near)
    numbers = {"exact": float(again.sum()), "near": float(near_again.sum())}
    if near_again.any():
        first = int(np.flatnonzero(near_again)[0])
        found = (
            f"{_share(numbers['exact'], len(table))} repeat an earlier row exactly, "
            f"{numbers['near'] - numbers['exact']:,.0f} more differ only in case, white space or punctuation; the "
            f"first at {table.where(first)}"
        )
        fix = "keep one copy of each; repeated rows get more weight in the loss"
        yield Finding("duplicate rows", "warn", found, fix, numbers)
    else:
        yield Finding("duplicate rows", "ok", "none", numbers=numbers)
    yield _prompt_duplicates(table)


def _row_keys(table: Table, normalised: bool) -> Keys:
    labels = np.fromiter((hash(repr(label)) for label in table.labels), np.int64, len(table.labels)).view(np.uint64)
    return combined([*(table.keys(part, normalised) for part in table.texts), *([labels] if table.labels else [])])


def _prompt_duplicates(table: Table) -> Finding:
    exact, near = (table.keys("prompt", normalised) for normalised in (False, True))
    unique, near_unique = len(np.unique(exact)), len(np.unique(near))
    numbers = {"unique": float(unique), "near_unique": float(near_unique)}
    found = f"{unique:,} different prompts in {len(table):,} rows"
    if near_unique < unique:
        found += f", {near_unique:,} ignoring case, white space and punctuation"
    most = int(np.unique(near, return_counts=True)[1].max())
    if most > 1:
        found += f"; the most frequent one occurs {most:,} times"
    if table.kind in ("pairs", "labels") or near_unique > 0.99 * len(table):
        return Finding("prompts", "ok", found, numbers=numbers)
    fix = "keep one row per prompt, or keep all rows of a prompt on the same side of the train/test split"
    return Finding("prompts", "warn", found, fix, numbers)


def check_pairs(table: Table) -> Iterator[Finding]:
    """Ties, and preferences that contradict each other."""
    if table.kind != "pairs":
        return
    prompt, chosen, rejected = (table.keys(part, False) for part in ("prompt", "chosen", "rejected"))
    tied = chosen == rejected
    near_tied = (table.keys("chosen", True) == table.keys("rejected", True)) & ~tied
    yield _count(
        table,
        "tied pairs",
        tied,
        "fail",
        "have the same text as chosen and rejected",
        "remove them; they carry no preference, and training refuses them",
    )
    if near_tied.any():
        yield _count(
            table,
            "nearly tied pairs",
            near_tied,
            "warn",
            "differ only in case, white space or punctuation",
            "remove them, unless you want to teach formatting",
        )
    opposed = np.isin(combined([prompt, chosen, rejected]), combined([prompt, rejected, chosen])) & ~tied
    yield _count(
        table,
        "contradictory pairs",
        opposed,
        "warn",
        "are contradicted by another row with the opposite preference",
        "keep the side that most annotators chose, or remove both; they cancel each other",
    )


def check_labels(table: Table) -> Iterator[Finding]:
    """Label types, contradictions and class balance."""
    if table.kind != "labels":
        return
    wrong = np.array([not isinstance(label, bool) for label in table.labels], bool)
    first = repr(table.labels[int(np.flatnonzero(wrong)[0])]) if wrong.any() else ""
    yield _count(
        table,
        "labels",
        wrong,
        "fail",
        f"have a label that is not true or false, such as {first}",
        "write true (desirable) or false (undesirable), without quotes",
    )
    if wrong.all():
        return
    desirable = np.array([label is True for label in table.labels], bool)
    key = combined([table.keys("prompt", False), table.keys("completion", False)])
    both = np.isin(key, key[desirable]) & np.isin(key, key[~desirable & ~wrong]) & ~wrong
    yield _count(
        table,
        "contradictory labels",
        both,
        "warn",
        "have a completion that is labelled both true and false for the same prompt",
        "keep the label that most annotators gave, or remove all of them",
    )
    yield balance(int(desirable.sum()), int((~desirable & ~wrong).sum()))


def balance(num_desirable: int, num_undesirable: int) -> Finding:
    """Class balance for KTO.

    With 50 to 70 % desirable rows, equal weights train well. Otherwise one weight should bring
    (num_desirable * w_D) / (num_undesirable * w_U) into `KTO_RATIO`; the other stays 1.
    """
    total = num_desirable + num_undesirable
    share = num_desirable / total
    numbers = {"desirable": float(num_desirable), "undesirable": float(num_undesirable), "desirable_share": share}
    found = f"{num_desirable:,} desirable, {num_undesirable:,} undesirable: {share:.1%} desirable"
    if not num_desirable or not num_undesirable:
        fix = "KTO needs both classes; add rows of the other class, or train on the desirable rows with sft"
        return Finding("class balance", "fail", f"{found}; one class is missing", fix, numbers)
    if DESIRABLE[0] <= share <= DESIRABLE[1]:
        return Finding("class balance", "ok", found, numbers=numbers)
    key, low, high = weight_range(num_desirable, num_undesirable)
    numbers |= {f"{key}_low": low, f"{key}_high": high}
    fix = f"set loss.{key} between {low:.3g} and {high:.3g} and keep the other weight at 1"
    if DESIRABLE_FAR[0] <= share <= DESIRABLE_FAR[1]:
        return Finding("class balance", "warn", f"{found}, outside the recommended 50 to 70 %", fix, numbers)
    found += ", strongly imbalanced (beyond 90/10): KTO will rarely see the smaller class"
    fix += "; collecting more rows of the smaller class is better, because with large weights few rows dominate"
    return Finding("class balance", "warn", found, fix, numbers)


def weight_range(num_desirable: int, num_undesirable: int) -> tuple[str, float, float]:
    """The KTO weight to change, and the smallest and largest value that bring the ratio into `KTO_RATIO`."""
    ratio = num_desirable / num_undesirable
    if ratio > KTO_RATIO[1]:
        return "undesirable_weight", ratio / KTO_RATIO[1], ratio / KTO_RATIO[0]
    return "desirable_weight", KTO_RATIO[0] / ratio, KTO_RATIO[1] / ratio


def check_answers(table: Table) -> Iterator[Finding]:
    """Prompts with more than one reference answer."""
    if table.kind != "answers":
        return
    prompt, answer = table.keys("prompt", True), table.keys("answer", True)
    both = combined([prompt, answer])
    first_of_pair = np.zeros(len(table), bool)
    first_of_pair[np.unique(both, return_index=True)[1]] = True
    kinds, counts = np.unique(prompt[first_of_pair], return_counts=True)
    yield _count(
        table,
        "contradictory answers",
        np.isin(prompt, kinds[counts > 1]),
        "warn",
        "have a prompt with a different answer in another row",
        "keep the correct answer; the reward treats each one as correct",
    )


def leakage(train: Table, test: Table) -> Finding:
    """Test prompts that also occur in the training data."""
    exact, near = (
        np.isin(test.keys("prompt", normalised), train.keys("prompt", normalised)) for normalised in (False, True)
    )
    near |= exact
    numbers = {"test_rows": float(len(test)), "exact": float(exact.sum()), "near": float(near.sum())}
    if not near.any():
        return Finding(
            "leakage", "ok", f"none of the {len(test):,} test prompts occurs in the training data", numbers=numbers
        )
    found = (
        f"{_share(float(near.sum()), len(test), 'test prompts')} also occur in the training data "
        f"({exact.sum():,} exactly, {(near & ~exact).sum():,} up to case, white space and punctuation), the first at "
        f"{test.where(int(np.flatnonzero(near)[0]))}"
    )
    fix = "remove them from the training data; otherwise the test measures memorization"
    return Finding("leakage", "fail", found, fix, numbers)


def repeated(keys: Keys) -> NDArray[np.bool_]:
    """Mask of the rows whose key occurred in an earlier row."""
    again = np.ones(len(keys), bool)
    again[np.unique(keys, return_index=True)[1]] = False
    return again


def _count(table: Table, name: str, rows: NDArray[np.bool_], state: str, what: str, fix: str) -> Finding:
    """A finding about the rows of a mask."""
    number = int(rows.sum())
    if not number:
        return Finding(name, "ok", "all are true or false" if name == "labels" else "none", numbers={"rows": 0})
    first = table.where(int(np.flatnonzero(rows)[0]))
    return Finding(name, state, f"{_share(number, len(table))} {what}, the first at {first}", fix, {"rows": number})


def _share(number: float, total: int, what: str = "rows") -> str:
    return f"{number:,.0f} of {total:,} {what} ({number / total:.1%})"

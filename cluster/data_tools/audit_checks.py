"""What `volley audit` looks for in a data set. Each check is a function of the table and gives findings, worst first.

Left out: near duplicates that differ in words (only case, white space, punctuation and Unicode forms are looked
through), circles of preferences longer than two (A > B > C > A), and whether a preference is right at all.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from volley.cluster.data_tools.audit_report import Finding
from volley.cluster.data_tools.audit_table import Keys, Table, combined
from volley.cluster.data_tools.data_kind import FITTING

WORDS = {
    "pairs": "a chosen and a rejected answer each",
    "labels": "a labelled answer each",
    "answers": "a prompt and its right answer each",
    "demonstrations": "a prompt and an answer to imitate each",
    "prompts": "a prompt each",
}
SMALL_PAIRS = 10_000
FEW_ROWS = 100
DESIRABLE = (0.5, 0.7)
DESIRABLE_FAR = (0.1, 0.9)
KTO_RATIO = (1.0, 4 / 3)
"""Between these KTO wants desirable rows times w_D over undesirable rows times w_U (arXiv 2402.01306, section 4)."""
SMALL_EFFECT = 0.2  # Cohen's convention
LARGE_SHARE = 0.6


def check_rows(table: Table) -> Iterator[Finding]:
    """How many there are, and which cannot be read."""
    num_rows, num_broken = len(table.rows), len(table.broken)
    found = f"{num_rows:,} rows with {WORDS[table.kind]}; they fit {', '.join(FITTING[table.kind])}"
    if table.kind == "pairs" and num_rows < SMALL_PAIRS:
        found += f"; below {SMALL_PAIRS:,} pairs IPO is the safer choice than DPO"
    few = "that is few for any method; expect it to be learned by heart, and gather more" if num_rows < FEW_ROWS else ""
    yield Finding("rows", "warn" if few else "ok", found, few, {"rows": num_rows})
    if num_broken:
        found = f"{num_broken:,} of {num_rows:,} rows cannot be read, the first: {table.broken[0]}"
        yield Finding(
            "readable", "fail", found, "mend or remove them; training refuses the first", {"rows": num_broken}
        )


def check_empty(table: Table) -> Iterator[Finding]:
    """Prompts, completions and answers without text."""
    for part, texts in table.texts.items():
        empty = [i for i, text in enumerate(texts) if not text.strip()]
        if empty:
            found = f"{_share(len(empty), len(table))} have no text as {part}, the first at {table.where(empty[0])}"
            yield Finding(f"empty {part}", "fail", found, "remove these rows", {"rows": len(empty)})
    if all(text.strip() for texts in table.texts.values() for text in texts):
        yield Finding("empty texts", "ok", "none")


def check_duplicates(table: Table) -> Iterator[Finding]:
    """Rows and prompts that stand there more than once."""
    exact, near = (_row_keys(table, normalised) for normalised in (False, True))
    again, near_again = repeated(exact), repeated(near)
    numbers = {"exact": float(again.sum()), "near": float(near_again.sum())}
    if near_again.any():
        first = int(np.flatnonzero(near_again)[0])
        found = (
            f"{_share(numbers['exact'], len(table))} repeat an earlier row exactly, "
            f"{numbers['near'] - numbers['exact']:,.0f} more but for case, space or punctuation; the first at "
            f"{table.where(first)}"
        )
        mend = "keep one of each: what is repeated counts as often in the loss"
        yield Finding("duplicate rows", "warn", found, mend, numbers)
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
        found += f", {near_unique:,} but for case, space or punctuation"
    most = int(np.unique(near, return_counts=True)[1].max())
    if most > 1:
        found += f"; the most frequent one stands there {most:,} times"
    if table.kind in ("pairs", "labels") or near_unique > 0.99 * len(table):
        return Finding("prompts", "ok", found, numbers=numbers)
    mend = "keep one row of each prompt, or hold the repeated ones out together, so that none is in train and test"
    return Finding("prompts", "warn", found, mend, numbers)


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
        "remove them; they say nothing about what is preferred, and training refuses them",
    )
    if near_tied.any():
        yield _count(
            table,
            "nearly tied pairs",
            near_tied,
            "warn",
            "differ in case, space or punctuation only",
            "remove them, unless form is what you want to teach",
        )
    opposed = np.isin(combined([prompt, chosen, rejected]), combined([prompt, rejected, chosen])) & ~tied
    yield _count(
        table,
        "contradictory pairs",
        opposed,
        "warn",
        "are contradicted by another row that prefers the other side",
        "keep the side that more judges chose, or remove both; together they teach nothing",
    )


def check_labels(table: Table) -> Iterator[Finding]:
    """Labels: their type, contradictions, and the balance of the two classes."""
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
        "are a completion that is labelled both ways for the same prompt",
        "keep the label that more judges gave, or remove all of them",
    )
    yield balance(int(desirable.sum()), int((~desirable & ~wrong).sum()))


def balance(num_desirable: int, num_undesirable: int) -> Finding:
    """The classes of KTO's data: 50 to 70 % desirable train well with equal weights. Beyond, one of the weights is to
    bring num_desirable w_D / (num_undesirable w_U) into `KTO_RATIO`; the other stays 1."""
    total = num_desirable + num_undesirable
    share = num_desirable / total
    numbers = {"desirable": float(num_desirable), "undesirable": float(num_undesirable), "desirable_share": share}
    found = f"{num_desirable:,} desirable, {num_undesirable:,} undesirable: {share:.1%} desirable"
    if not num_desirable or not num_undesirable:
        mend = "KTO learns from the contrast; add rows of the other class, or imitate the desirable ones with sft"
        return Finding("class balance", "fail", f"{found}, and nothing of the other class", mend, numbers)
    if DESIRABLE[0] <= share <= DESIRABLE[1]:
        return Finding("class balance", "ok", found, numbers=numbers)
    key, low, high = weight_range(num_desirable, num_undesirable)
    numbers |= {f"{key}_low": low, f"{key}_high": high}
    mend = f"set loss.{key} between {low:.3g} and {high:.3g}, the other weight staying 1"
    if DESIRABLE_FAR[0] <= share <= DESIRABLE_FAR[1]:
        return Finding("class balance", "warn", f"{found}, outside of 50 to 70 %", mend, numbers)
    found += ", far out of balance (beyond 90/10): KTO will hardly see the rarer class"
    mend += "; better, gather more of the rarer class: weights that large make single rows decide"
    return Finding("class balance", "warn", found, mend, numbers)


def weight_range(num_desirable: int, num_undesirable: int) -> tuple[str, float, float]:
    """The option of KTO's loss to change, and the smallest and largest value that bring the ratio into `KTO_RATIO`."""
    ratio = num_desirable / num_undesirable
    if ratio > KTO_RATIO[1]:
        return "undesirable_weight", ratio / KTO_RATIO[1], ratio / KTO_RATIO[0]
    return "desirable_weight", KTO_RATIO[0] / ratio, KTO_RATIO[1] / ratio


def check_answers(table: Table) -> Iterator[Finding]:
    """Prompts with more than one gold answer."""
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
        "have a prompt that another row answers differently",
        "check which answer is right; the reward believes each",
    )


def length_gap(chosen: Sequence[int], rejected: Sequence[int], unit: str) -> Finding:
    """Chosen against rejected in length, and what it will do to a model trained by DPO.

    DPO sums log-ratios over tokens, so where one side is longer as a rule, length itself separates the sides and is
    learned along with quality (arXiv 2403.19159). effect_size: mean difference over its standard deviation (Cohen's d
    of paired values). longer_share: ties count half; it is the accuracy of always preferring the longer side.
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
        f"chosen has {medians[0]:,.0f} {unit} (median), rejected {medians[1]:,.0f}, and chosen is the longer one in "
        f"{share:.0%} of the pairs (effect size {effect:+.2f})"
    )
    # Two standard errors: a gap that few pairs show by chance is none.
    certain = abs(effect) > 2 / math.sqrt(len(gaps)) or abs(share - 0.5) > 1 / math.sqrt(len(gaps))
    if not certain or (abs(effect) < SMALL_EFFECT and 1 - LARGE_SHARE < share < LARGE_SHARE):
        return Finding("length gap", "ok", f"{found}: too little to be learned instead of quality", numbers=numbers)
    if effect > 0:
        found += f": preferring the longer one is right in {share:.0%}, so DPO will lengthen the answers"
        mend = (
            "use SimPO, which divides length out (volley init --concise), or drop pairs until either side is the "
            "longer one as often; watch the response length while training"
        )
    else:
        found += f": preferring the shorter one is right in {1 - share:.0%}, so DPO will shorten the answers"
        mend = (
            "fine if shorter is what you want, but watch accuracy by length bucket; else use SimPO, which divides "
            "length out, or drop pairs until either side is the longer one as often"
        )
    return Finding("length gap", "warn", found, mend, numbers)


def leakage(train: Table, test: Table) -> Finding:
    """Prompts that stand in both."""
    exact, near = (
        np.isin(test.keys("prompt", normalised), train.keys("prompt", normalised)) for normalised in (False, True)
    )
    near |= exact
    numbers = {"test_rows": float(len(test)), "exact": float(exact.sum()), "near": float(near.sum())}
    if not near.any():
        return Finding(
            "leakage", "ok", f"none of the {len(test):,} test prompts is in the training data", numbers=numbers
        )
    found = (
        f"{_share(float(near.sum()), len(test), 'test prompts')} are in the training data, too "
        f"({exact.sum():,} exactly, {(near & ~exact).sum():,} but for case, space or punctuation), the first at "
        f"{test.where(int(np.flatnonzero(near)[0]))}"
    )
    return Finding(
        "leakage", "fail", found, "remove them from the training data, else the test measures memory", numbers
    )


def repeated(keys: Keys) -> NDArray[np.bool_]:
    """Which rows have the key of an earlier row."""
    again = np.ones(len(keys), bool)
    again[np.unique(keys, return_index=True)[1]] = False
    return again


def _count(table: Table, name: str, rows: NDArray[np.bool_], state: str, what: str, mend: str) -> Finding:
    number = int(rows.sum())
    if not number:
        return Finding(name, "ok", "all are true or false" if name == "labels" else "none", numbers={"rows": 0})
    first = table.where(int(np.flatnonzero(rows)[0]))
    return Finding(name, state, f"{_share(number, len(table))} {what}, the first at {first}", mend, {"rows": number})


def _share(number: float, total: int, what: str = "rows") -> str:
    return f"{number:,.0f} of {total:,} {what} ({number / total:.1%})"

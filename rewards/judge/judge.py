"""A language model as the judge: scores responses, or compares them, by written principles (RLAIF).

The idea of learning from a model's opinion under a constitution is from arXiv 2212.08073 and 2309.00267; that a judge
prefers a place, and asking in both orders against it, from arXiv 2306.05685 (section 3.3 and 3.4).

    score      reward_i = (s_i - 1) / 9, s_i in 1..10
    pairwise   reward_i = mean over the opponents j of (v_ij + 1 - v_ji) / 2
               v_ij = 1, 1/2 or 0: response i, shown first, wins, ties or loses against j

Contradicting orders thus count as half a win each, like ties. Every response meets `opponents` others: all of them in a
small group, else its neighbours on a ring, which keeps the calls linear in G. Equal responses are not asked twice.

Where there is no judgement (the endpoint fails, or answers nonsense) the response is unscorable, not 0; when that
happens too often the run ends, and does so early where not one of the first judgements came. What is asked, and how
answers are read, is in `volley.rewards.judge.judgement`.

Left out: several judges and votes, sampling one judge several times, and reference answers.
"""

import math
import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from volley.rewards.config import RewardConfig
from volley.rewards.item import Item, Outcome, Unscorable
from volley.rewards.judge.chat_client import ChatClient, Message
from volley.rewards.judge.judgement import SCORE, SYSTEM, WINNER, Question, read_principles, show, show_prompt
from volley.rewards.terms import all_of, read_options
from volley.rollout.errors import RewardError

MODES = ("score", "pairwise")
WINDOW = 64
FIRST = 16
"""Judgements at the start of a run of which at least one must come: a short run may never fill the window."""


@dataclass(frozen=True)
class JudgeOptions:
    """endpoint: an OpenAI-compatible one, up to /v1. principles: a text file. opponents: how many others a response
    meets in pairwise mode. explain: let the judge reason in words before it decides. max_tokens: of its answer.
    max_unscorable_share: of the last 64 judgements, or of the first 16 where none came; beyond it the run ends.
    price_per_million_tokens: {prompt: ..., completion: ...}. api_key_env, extra and the rest: see `ChatClient`."""

    endpoint: str
    model: str
    principles: str
    mode: str = "score"
    opponents: int = 8
    explain: bool = True
    temperature: float = 0.0
    max_tokens: int = 512
    max_in_flight: int = 16
    timeout_s: float = 60.0
    retries: int = 3
    api_key_env: str = "OPENAI_API_KEY"
    max_unscorable_share: float = 0.5
    price_per_million_tokens: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


class Judge:
    """A `GroupTerm`. Raises RewardError for options that are wrong and principles that cannot be read."""

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self._options = options = read_options(JudgeOptions, config.options, config.name)
        _check_options(options)
        self._system = SYSTEM.format(principles=read_principles(options.principles))
        self._client = ChatClient(
            options.endpoint,
            options.model,
            max_in_flight=options.max_in_flight,
            timeout_s=options.timeout_s,
            retries=options.retries,
            api_key_env=options.api_key_env,
            price_per_million_tokens=options.price_per_million_tokens,
            extra=options.extra,
        )
        self._last_reason = ""
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._counts: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._told_seconds = 0.0

    @property
    def compares(self) -> bool:
        return self._options.mode == "pairwise"

    async def check(self, group_size: int) -> None:
        if self._options.mode == "pairwise" and group_size == 1:
            raise RewardError(
                "reward 'judge': mode pairwise compares a prompt's responses, but rollout.group_size is 1; set it to "
                "at least 2, or mode: score."
            )
        await self.start()
        try:
            await self._client.check()
        finally:
            await self.close()

    async def start(self) -> None:
        await self._client.start()

    async def close(self) -> None:
        await self._client.close()

    async def score_group(self, items: Sequence[Item]) -> list[Outcome]:
        """Raises RewardError once more than `max_unscorable_share` of the last judgements are unscorable."""
        return await (self._score(items) if self._options.mode == "score" else self._compare(items))

    def metrics(self) -> dict[str, float]:
        """calls, tokens and shares since the last call; cost of the process's life. position_bias: share of decided
        comparisons won by the response shown first (0.5: none). inconsistent: share of pairs whose orders disagree."""
        now = self._counts + self._client.counts
        new, seconds = now - self._told, self._client.seconds - self._told_seconds
        self._told, self._told_seconds = now, self._client.seconds
        metrics = {name: float(new[name]) for name in ("calls", "retries", "prompt_tokens", "completion_tokens")}
        metrics["cost"] = self._client.cost
        metrics["call_s"] = _share(seconds, new["calls"])
        metrics["unscorable_share"] = _share(new["unscorable"], new["judgements"])
        if self._options.mode == "pairwise":
            metrics["position_bias"] = _share(new["first_wins"], new["decided"])
            metrics["inconsistent"] = _share(new["inconsistent"], new["orders"])
        return metrics

    async def _score(self, items: Sequence[Item]) -> list[Outcome]:
        texts = list(dict.fromkeys(item.response for item in items))
        prompt = show_prompt(items[0])
        found = await all_of([self._judge(SCORE, f"{prompt}\n{show('response', text)}") for text in texts])
        by_text = dict(zip(texts, found, strict=True))
        return [by_text[item.response] for item in items]

    async def _compare(self, items: Sequence[Item]) -> list[Outcome]:
        texts, prompt = [item.response for item in items], show_prompt(items[0])
        pairs = meetings(len(items), self._options.opponents)
        orders = [order for i, j in pairs for order in ((i, j), (j, i))]
        matches = list(dict.fromkeys((texts[i], texts[j]) for i, j in orders if texts[i] != texts[j]))
        shown = [f"{prompt}\n{show('response_A', first)}\n{show('response_B', second)}" for first, second in matches]
        verdicts = await all_of([self._judge(WINNER, text) for text in shown])
        found = dict(zip(matches, verdicts, strict=True))
        self._count_pairs({match: verdict.value for match, verdict in found.items()})
        outcomes = {(i, j): found.get((texts[i], texts[j]), Outcome(0.5)) for i, j in orders}
        shares = win_shares(len(items), {order: outcome.value for order, outcome in outcomes.items()})
        alone = f"reward '{self.config.label}': there is no other response to compare with"
        reasons = [
            next((outcome.error for order, outcome in outcomes.items() if i in order and outcome.error), alone)
            for i in range(len(items))
        ]
        return [
            Outcome(share, reason if math.isnan(share) else "") for share, reason in zip(shares, reasons, strict=True)
        ]

    def _count_pairs(self, points: dict[tuple[str, str], float]) -> None:
        """Of the pairs of which both orders came to a verdict. points: of the response shown first."""
        for (first, second), forward in points.items():
            backward = points[second, first]
            if math.isnan(forward + backward):
                continue
            self._counts["orders"] += 1
            self._counts["inconsistent"] += forward != 1.0 - backward
            self._counts["decided"] += forward != 0.5
            self._counts["first_wins"] += forward == 1.0

    async def _judge(self, question: Question, shown: str) -> Outcome:
        explain = self._options.explain
        messages: list[Message] = [
            {"role": "system", "content": self._system},
            {"role": "user", "content": question.text(shown, explain)},
        ]
        options = {"temperature": self._options.temperature, "max_tokens": self._options.max_tokens}
        try:
            value = question.read(await self._client.ask(messages, question.schema(explain), **options))
        except Unscorable as reason:
            self._note(str(reason))
            return Outcome(math.nan, f"reward '{self.config.label}': {reason}")
        self._note("")
        return Outcome(value)

    def _note(self, reason: str) -> None:
        """Keep count of judgements, and end the run when it can no longer live on them."""
        self._counts["judgements"] += 1
        self._counts["unscorable"] += bool(reason)
        self._recent.append(bool(reason))
        self._last_reason = reason or self._last_reason
        number = len(self._recent)
        share = sum(self._recent) / number
        is_telling = number == WINDOW or (number >= FIRST and share == 1.0)
        if is_telling and share > self._options.max_unscorable_share:
            raise RewardError(
                f"reward '{self.config.label}': {share:.0%} of the last {number} judgements of {self._client.endpoint} "
                f"are unscorable, more than max_unscorable_share ({self._options.max_unscorable_share:.0%}); the last "
                f"reason: {self._last_reason}."
            )


def meetings(num_responses: int, opponents: int) -> list[tuple[int, int]]:
    """The pairs (i, j) that are compared: all, or on a ring those at most opponents / 2 apart."""
    n = num_responses
    if n - 1 <= opponents:
        return [(i, j) for i in range(n) for j in range(i + 1, n)]
    return [(i, (i + step) % n) for i in range(n) for step in range(1, opponents // 2 + 1)]


def win_shares(num_responses: int, points: dict[tuple[int, int], float]) -> list[float]:
    """[G], each in [0, 1]: the mean of (v_ij + 1 - v_ji) / 2 over the opponents j. points: v_ij of the response shown
    first; a pair with one order missing (NaN) is left out, a response without any pair gets NaN."""
    won: list[list[float]] = [[] for _ in range(num_responses)]
    for (i, j), forward in points.items():
        both = (forward + 1.0 - points[j, i]) / 2.0
        if not math.isnan(both):
            won[i].append(both)
    return [math.fsum(shares) / len(shares) if shares else math.nan for shares in won]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _check_options(options: JudgeOptions) -> None:
    where = "reward 'judge':"
    if not re.fullmatch(r"https?://[^\s@?#]+", options.endpoint) or options.endpoint.rstrip("/").endswith(
        "/completions"
    ):
        raise RewardError(
            f"{where} 'endpoint' is no plain http address up to /v1, such as http://host:8000/v1; a key belongs into "
            "the environment variable that api_key_env names."
        )
    if options.mode not in MODES:
        raise RewardError(f"{where} mode is '{options.mode}'; it must be one of {', '.join(MODES)}.")
    if options.opponents < 2 or options.opponents % 2:
        raise RewardError(f"{where} opponents is {options.opponents}; it must be an even number of at least 2.")
    for name, least in {"max_in_flight": 1, "max_tokens": 1, "retries": 0, "temperature": 0}.items():
        if getattr(options, name) < least:
            raise RewardError(f"{where} {name} is {getattr(options, name)}; it must be at least {least}.")
    if not 0 < options.timeout_s < math.inf:
        raise RewardError(f"{where} timeout_s is {options.timeout_s}; it must be above 0.")
    if not 0 <= options.max_unscorable_share <= 1:
        raise RewardError(f"{where} max_unscorable_share is {options.max_unscorable_share}; it must be in 0 .. 1.")
    prices = options.price_per_million_tokens
    if not {*prices} <= {"prompt", "completion"} or not all(
        type(price) in (int, float) and 0 <= price < math.inf for price in prices.values()
    ):
        raise RewardError(f"{where} price_per_million_tokens must be {{prompt: NUMBER, completion: NUMBER}}.")

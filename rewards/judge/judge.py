"""A language model as the judge: it scores responses, or compares them, by written principles (RLAIF).

Learning from a model's judgement under a constitution is from arXiv 2212.08073 and 2309.00267. Position bias of judges,
and asking in both orders against it, is described in arXiv 2306.05685 (sections 3.3 and 3.4).

    score      reward_i = (s_i - 1) / 9, s_i in 1..10
    pairwise   reward_i = mean over the opponents j of (v_ij + 1 - v_ji) / 2
               v_ij = 1, 1/2 or 0: response i, shown first, wins, ties or loses against j

Verdicts that contradict each other in the two orders therefore count as half a win each, like ties. Every response is
compared with `opponents` others: with all of them in a small group, else with its neighbours on a ring, which keeps the
number of calls linear in G. Equal responses are judged once.

A response without a judgement (the endpoint fails, or its answer is invalid) is unscorable, not 0. If that happens too
often the run ends; it ends early if all of the first judgements fail. The questions and the parsing of answers are in
`volley.rewards.judge.judgement`.

Left out: several judges and votes, sampling one judge several times, and reference answers.
"""

import math
import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from volley.rewards.config import RewardConfig
from volley.rewards.item import Item, Outcome, Unscorable
from volley.rewards.judge.chat_client import ChatClient, ChatOptions, Message
from volley.rewards.judge.judgement import SCORE, SYSTEM, WINNER, Question, quote, quote_prompt, read_principles
from volley.rewards.terms import all_of, read_options
from volley.rollout.errors import RewardError

MODES = ("score", "pairwise")
WINDOW = 64
FIRST = 16
"""At least one of this many first judgements must succeed, because a short run may never fill the window."""


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(ChatOptions):
    """Options of the reward `judge`."""

    principles: str
    """The path of a text file with one principle per line."""
    mode: str = "score"
    """`score`: each response alone. `pairwise`: responses to the same prompt against each other."""
    opponents: int = 8
    """Number of other responses that a response is compared with in pairwise mode."""
    explain: bool = True
    """Let the judge reason in words before it decides."""
    temperature: float = 0.0
    """Sampling temperature of the judge."""
    max_tokens: int = 512
    """Length limit of the judge's answer."""
    max_unscorable_share: float = 0.5
    """The run ends if more than this fraction of the last 64 judgements failed, or all of the first 16."""


class Judge:
    """The `GroupTerm` of a judge. Raises RewardError for wrong options and for principles that cannot be read."""

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self._options = options = read_options(JudgeOptions, config.options, config.name)
        _check_options(options)
        self._system = SYSTEM.format(principles=read_principles(options.principles))
        self._client = ChatClient(options)
        self._last_reason = ""
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._counts: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        self._reported_seconds = 0.0

    @property
    def compares(self) -> bool:
        """True in pairwise mode."""
        return self._options.mode == "pairwise"

    async def check(self, group_size: int) -> None:
        """Check that the endpoint answers and has the model, and that there is something to compare."""
        if self._options.mode == "pairwise" and group_size == 1:
            raise RewardError(
                "reward 'judge': mode pairwise compares the responses to a prompt, but rollout.group_size is 1; set it "
                "to at least 2, or use mode: score."
            )
        await self.start()
        try:
            await self._client.check()
        finally:
            await self.close()

    async def start(self) -> None:
        """Open the connections."""
        await self._client.start()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def score_group(self, items: Sequence[Item]) -> list[Outcome]:
        """Raises RewardError if more than `max_unscorable_share` of the last judgements are unscorable."""
        return await (self._score(items) if self._options.mode == "score" else self._compare(items))

    def metrics(self) -> dict[str, float]:
        """Metrics since the previous call; `cost` is the total so far.

        position_bias: fraction of decided comparisons that the first response won (0.5: no bias).
        inconsistent: fraction of pairs whose two orders contradict each other.
        """
        now = self._counts + self._client.counts
        new, seconds = now - self._reported, self._client.seconds - self._reported_seconds
        self._reported, self._reported_seconds = now, self._client.seconds
        metrics = {name: float(new[name]) for name in ("calls", "retries", "prompt_tokens", "completion_tokens")}
        metrics["cost"] = self._client.cost
        metrics["call_s"] = _ratio(seconds, new["calls"])
        metrics["unscorable_share"] = _ratio(new["unscorable"], new["judgements"])
        if self._options.mode == "pairwise":
            metrics["position_bias"] = _ratio(new["first_wins"], new["decided"])
            metrics["inconsistent"] = _ratio(new["inconsistent"], new["orders"])
        return metrics

    async def _score(self, items: Sequence[Item]) -> list[Outcome]:
        texts = list(dict.fromkeys(item.response for item in items))
        prompt = quote_prompt(items[0])
        outcomes = await all_of([self._judge(SCORE, f"{prompt}\n{quote('response', text)}") for text in texts])
        by_text = dict(zip(texts, outcomes, strict=True))
        return [by_text[item.response] for item in items]

    async def _compare(self, items: Sequence[Item]) -> list[Outcome]:
        texts, prompt = [item.response for item in items], quote_prompt(items[0])
        pairs = pairings(len(items), self._options.opponents)
        orders = [order for i, j in pairs for order in ((i, j), (j, i))]
        matches = list(dict.fromkeys((texts[i], texts[j]) for i, j in orders if texts[i] != texts[j]))
        quoted = [f"{prompt}\n{quote('response_A', first)}\n{quote('response_B', second)}" for first, second in matches]
        verdicts = await all_of([self._judge(WINNER, text) for text in quoted])
        by_match = dict(zip(matches, verdicts, strict=True))
        self._count_pairs({match: verdict.value for match, verdict in by_match.items()})
        outcomes = {(i, j): by_match.get((texts[i], texts[j]), Outcome(0.5)) for i, j in orders}
        rates = win_rates(len(items), {order: outcome.value for order, outcome in outcomes.items()})
        alone = f"reward '{self.config.label}': there is no other response to compare with"
        reasons = [
            next((outcome.error for order, outcome in outcomes.items() if i in order and outcome.error), alone)
            for i in range(len(items))
        ]
        return [Outcome(rate, reason if math.isnan(rate) else "") for rate, reason in zip(rates, reasons, strict=True)]

    def _count_pairs(self, points: dict[tuple[str, str], float]) -> None:
        """Count the pairs with a verdict in both orders. points: of the response shown first."""
        for (first, second), forward in points.items():
            backward = points[second, first]
            if math.isnan(forward + backward):
                continue
            self._counts["orders"] += 1
            self._counts["inconsistent"] += forward != 1.0 - backward
            self._counts["decided"] += forward != 0.5
            self._counts["first_wins"] += forward == 1.0

    async def _judge(self, question: Question, quoted: str) -> Outcome:
        explain = self._options.explain
        messages: list[Message] = [
            {"role": "system", "content": self._system},
            {"role": "user", "content": question.text(quoted, explain)},
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
        """Count a judgement, and end the run if too many have failed. reason: "" for success."""
        self._counts["judgements"] += 1
        self._counts["unscorable"] += bool(reason)
        self._recent.append(bool(reason))
        self._last_reason = reason or self._last_reason
        number = len(self._recent)
        failed = sum(self._recent) / number
        is_decided = number == WINDOW or (number >= FIRST and failed == 1.0)
        if is_decided and failed > self._options.max_unscorable_share:
            raise RewardError(
                f"reward '{self.config.label}': {failed:.0%} of the last {number} judgements of "
                f"{self._client.endpoint} are unscorable, more than max_unscorable_share "
                f"({self._options.max_unscorable_share:.0%}); the last reason: {self._last_reason}."
            )


def pairings(num_responses: int, opponents: int) -> list[tuple[int, int]]:
    """The pairs (i, j) to compare: all pairs, or on a ring those at most opponents / 2 apart."""
    n = num_responses
    if n - 1 <= opponents:
        return [(i, j) for i in range(n) for j in range(i + 1, n)]
    return [(i, (i + step) % n) for i in range(n) for step in range(1, opponents // 2 + 1)]


def win_rates(num_responses: int, points: dict[tuple[int, int], float]) -> list[float]:
    """[G], each in [0, 1]: the mean of (v_ij + 1 - v_ji) / 2 over the opponents j.

    points: v_ij of the response shown first. A pair with a missing order (NaN) is left out; a response without any pair
    gets NaN.
    """
    won: list[list[float]] = [[] for _ in range(num_responses)]
    for (i, j), forward in points.items():
        both = (forward + 1.0 - points[j, i]) / 2.0
        if not math.isnan(both):
            won[i].append(both)
    return [math.fsum(each) / len(each) if each else math.nan for each in won]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _check_options(options: JudgeOptions) -> None:
    where = "reward 'judge':"
    if not re.fullmatch(r"https?://[^\s@?#]+", options.endpoint) or options.endpoint.rstrip("/").endswith(
        "/completions"
    ):
        raise RewardError(
            f"{where} 'endpoint' must be a plain http address up to /v1, such as http://host:8000/v1; put a key into "
            "the environment variable named by api_key_env."
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
        raise RewardError(
            f"{where} max_unscorable_share is {options.max_unscorable_share}; it must be between 0 and 1."
        )
    prices = options.price_per_million_tokens
    if not {*prices} <= {"prompt", "completion"} or not all(
        type(price) in (int, float) and 0 <= price < math.inf for price in prices.values()
    ):
        raise RewardError(f"{where} price_per_million_tokens must be {{prompt: NUMBER, completion: NUMBER}}.")

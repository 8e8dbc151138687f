"""Shared by the tests of the judge: groups, and endpoints that play the judge."""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from volley.rewards.config import RewardConfig
from volley.rewards.item import Item, Outcome
from volley.rewards.judge.fake_endpoint import MODEL, Endpoint, Reply
from volley.rewards.judge.judge import Judge
from volley.rollout.types import Completion, Prompt, Score, as_token_ids

CONSTITUTION = Path(__file__).parents[3] / "recipes" / "constitution.txt"
Answer = Callable[[dict[str, Any]], Reply]


def item(response: str, prompt: str = "what is 7 + 11?", **fields: Any) -> Item:
    return Item(prompt, response, "18", 3, False, {}, **fields)


def options(url: str, **more: Any) -> dict[str, Any]:
    return {"endpoint": url, "model": MODEL, "principles": str(CONSTITUTION), "retries": 0, **more}


def judged(answer: Answer, responses: Sequence[str], **more: Any) -> tuple[list[Outcome], Endpoint, dict[str, float]]:
    """The outcomes of one group, the endpoint after it, and the metrics."""

    async def main() -> tuple[list[Outcome], Endpoint, dict[str, float]]:
        async with Endpoint(answer) as endpoint:
            judge = Judge(RewardConfig("judge", options=options(endpoint.url, **more)))
            await judge.start()
            try:
                return await judge.score_group([item(text) for text in responses]), endpoint, judge.metrics()
            finally:
                await judge.close()

    return asyncio.run(main())


def shown(request: dict[str, Any], name: str = "response") -> str:
    """The text between the tags of this name; fails unless they occur exactly once."""
    (found,) = re.findall(rf"<judged_{name}>\n(.*?)\n</judged_{name}>", request["messages"][1]["content"], re.DOTALL)
    return str(found)


def winner(request: dict[str, Any], better: Callable[[str, str], int]) -> Reply:
    """The answer of a judge that compares by a function: positive if the first response is better."""
    sign = better(shown(request, "response_A"), shown(request, "response_B"))
    return Reply(json.dumps({"reasoning": "so", "winner": "A" if sign > 0 else "B" if sign < 0 else "tie"}))


def longer(first: str, second: str) -> int:
    return len(first) - len(second)


def group(responses: Sequence[str]) -> tuple[Prompt, list[Completion], list[Score]]:
    """A prompt, its completions, and their scores without plain terms."""
    completions = [Completion.single((1, 2, 3), (0.0, 0.0, 0.0), text, "stop", 0, 0) for text in responses]
    return Prompt(0, 0, "question", as_token_ids((1, 2)), "18", {}), completions, [Score(0.0, {}) for _ in responses]

"""The client of OpenAI-compatible endpoints against a real server, with and without errors."""

import asyncio
import email.utils
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from volley.rewards.item import Unscorable
from volley.rewards.judge.chat_client import ChatClient, ChatOptions
from volley.rewards.judge.fake_endpoint import MODEL, Endpoint, Reply, closed_port
from volley.rollout.errors import RewardError

MESSAGES = [{"role": "user", "content": "how good is it?"}]
SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]}
GOOD = '{"score": 7}'


def client_of(url: str, model: str = MODEL, backoff_s: float = 0.01, **options: Any) -> ChatClient:
    return ChatClient(ChatOptions(endpoint=url, model=model, **{"api_key_env": "", **options}), backoff_s)


def asked(
    answer: Callable[[dict[str, Any]], Reply], num_calls: int = 1, **options: Any
) -> tuple[list[str | Unscorable], Endpoint, ChatClient]:
    """The results of concurrent calls, with the endpoint and the client after them."""

    async def main() -> tuple[list[Any], Endpoint, ChatClient]:
        async with Endpoint(answer) as endpoint:
            client = client_of(endpoint.url, **{"timeout_s": 5.0, **options})
            await client.start()
            try:
                calls = [client.ask(MESSAGES, SCHEMA, temperature=0.0) for _ in range(num_calls)]
                return await asyncio.gather(*calls, return_exceptions=True), endpoint, client
            finally:
                await client.close()

    return asyncio.run(main())


def in_turn(replies: Sequence[Reply]) -> Callable[[dict[str, Any]], Reply]:
    """Replies in this order; the last one repeats."""
    left = list(replies)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]


def test_a_good_answer_and_its_cost() -> None:
    price = {"prompt": 2.0, "completion": 10.0}
    results, endpoint, client = asked(lambda _: Reply(GOOD), 3, price_per_million_tokens=price, extra={"seed": 4})
    assert results == [GOOD] * 3
    assert client.counts["prompt_tokens"] == 300
    assert client.counts["completion_tokens"] == 30
    assert client.cost == pytest.approx((300 * 2.0 + 30 * 10.0) / 1e6)
    request = endpoint.requests[0]
    assert (request["model"], request["messages"], request["seed"]) == (MODEL, MESSAGES, 4)
    assert request["response_format"]["json_schema"]["schema"] == SCHEMA


def test_null_in_extra_removes_a_field() -> None:
    _, endpoint, _ = asked(lambda _: Reply(GOOD), extra={"temperature": None})
    assert "temperature" not in endpoint.requests[0]


def test_the_key_appears_in_the_header_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-1234")
    bad = Reply(status=403, body="sk-secret-1234 is wrong")
    results, endpoint, _ = asked(lambda _: bad, api_key_env="JUDGE_KEY")
    assert endpoint.headers[0]["Authorization"] == "Bearer sk-secret-1234"
    assert isinstance(results[0], Unscorable)
    assert "status 403: *** is wrong" in str(results[0])
    _, endpoint, _ = asked(lambda _: Reply(GOOD), api_key_env="NO_SUCH_VARIABLE")
    assert "Authorization" not in endpoint.headers[0]


def test_the_key_does_not_follow_a_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    results, endpoint, _ = asked(
        lambda _: Reply(status=307, headers={"Location": "/v1/chat/completions"}), api_key_env="JUDGE_KEY"
    )
    assert "status 307" in str(results[0])
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_temporary_errors_are_retried(status: int) -> None:
    results, endpoint, client = asked(in_turn([Reply(status=status), Reply(status=status), Reply(GOOD)]), retries=2)
    assert results == [GOOD]
    assert len(endpoint.requests) == 3
    assert (client.counts["calls"], client.counts["retries"]) == (1, 2)


@pytest.mark.parametrize("status", [401, 404, 413, 422])
def test_permanent_errors_are_not_retried(status: int) -> None:
    results, endpoint, _ = asked(lambda _: Reply(status=status, body="no"), retries=3)
    assert str(results[0]) == f"the endpoint answers with status {status}: no"
    assert len(endpoint.requests) == 1


def test_retries_are_limited() -> None:
    results, endpoint, _ = asked(lambda _: Reply(status=500, body="oh"), retries=2)
    assert str(results[0]) == "the endpoint answers with status 500: oh (tried 3 times)"
    assert len(endpoint.requests) == 3


def test_pauses_grow() -> None:
    started = time.monotonic()
    asked(lambda _: Reply(status=500), retries=3, backoff_s=0.1)
    assert time.monotonic() - started >= 0.1 + 0.2 + 0.4


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_delays_all_calls(as_date: bool) -> None:
    times: list[float] = []

    def answer(request: dict[str, Any]) -> Reply:
        times.append(time.monotonic())
        pause = email.utils.formatdate(time.time() + 2, usegmt=True) if as_date else "1"
        return Reply(status=429, headers={"Retry-After": pause}) if len(times) == 1 else Reply(GOOD)

    async def main() -> list[str]:
        async with Endpoint(answer) as endpoint:
            client = client_of(endpoint.url)
            await client.start()
            first = asyncio.ensure_future(client.ask(MESSAGES, SCHEMA))
            await asyncio.sleep(0.2)
            later = [asyncio.ensure_future(client.ask(MESSAGES, SCHEMA)) for _ in range(3)]
            results = await asyncio.gather(first, *later)
            await client.close()
            return results

    assert asyncio.run(main()) == [GOOD] * 4
    assert len(times) == 5
    assert times[1] - times[0] >= (0.9 if as_date else 1.0)


def test_a_pause_that_is_too_long_is_an_error() -> None:
    started = time.monotonic()
    results, _, _ = asked(lambda _: Reply(status=429, headers={"Retry-After": "86400"}))
    assert "requests a pause of 86400 s" in str(results[0])
    assert time.monotonic() - started < 2


def test_a_slow_endpoint_times_out() -> None:
    results, endpoint, _ = asked(lambda _: Reply(GOOD, delay_s=30), timeout_s=0.1, retries=1)
    assert str(results[0]) == "no answer within 0.1 s (tried 2 times)"
    assert len(endpoint.requests) == 2


def test_concurrent_calls_are_limited() -> None:
    results, endpoint, _ = asked(lambda _: Reply(GOOD, delay_s=0.02), 40, max_in_flight=5)
    assert results == [GOOD] * 40
    assert endpoint.max_in_flight == 5


def test_an_endpoint_without_a_listener() -> None:
    async def main() -> str:
        client = client_of(f"http://127.0.0.1:{closed_port()}/v1", retries=1)
        await client.start()
        try:
            await client.ask(MESSAGES, SCHEMA)
        except Unscorable as reason:
            return str(reason)
        finally:
            await client.close()
        return ""

    assert "cannot be reached" in asyncio.run(main())


@pytest.mark.parametrize(
    "body",
    [
        "<html>502</html>",
        '{"choices": [{"message": {"content": "{',
        "[]",
        "null",
        "{}",
        '{"choices": []}',
        '{"choices": {"0": 1}}',
        '{"choices": [{"message": null}]}',
        '{"choices": [{"message": "text"}]}',
        "[" * 100_000,
        "\x00",
        "x" * (5 << 20),
    ],
    ids=lambda body: body[:20],
)
def test_invalid_replies_are_unscorable(body: str) -> None:
    results, _, _ = asked(lambda _: Reply(body=body), retries=0)
    assert isinstance(results[0], Unscorable)
    assert len(str(results[0])) < 300


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(GOOD, finish_reason="length"), "cut off at max_tokens"),
        (Reply(None), "contains no text"),
        (Reply(body='{"choices": [{"message": {"content": null, "refusal": "I will not"}}]}'), "refuses"),
    ],
)
def test_missing_answers_are_unscorable(reply: Reply, message: str) -> None:
    results, _, _ = asked(lambda _: reply)
    assert message in str(results[0])


def test_invalid_usage_is_ignored() -> None:
    body = json.dumps({"choices": [{"message": {"content": GOOD}}], "usage": {"prompt_tokens": "many"}})
    results, _, client = asked(lambda _: Reply(body=body))
    assert results == [GOOD]
    assert client.counts["prompt_tokens"] == 0


@pytest.mark.parametrize("takes", ["json_object", None])
def test_an_endpoint_without_schemas_gets_simpler_requests(takes: str | None) -> None:
    def answer(request: dict[str, Any]) -> Reply:
        shape = request.get("response_format", {}).get("type")
        return Reply(GOOD) if shape == takes else Reply(status=400, body=f"{shape} is not supported")

    results, endpoint, _ = asked(answer, 5, max_in_flight=1)
    assert results == [GOOD] * 5
    asked_first = 2 if takes else 3
    assert len(endpoint.requests) == asked_first + 4, "the format that works is kept"


def test_a_refusal_for_another_reason_keeps_schemas() -> None:
    results, endpoint, _ = asked(
        in_turn([Reply(GOOD), Reply(status=400, body="too long"), Reply(GOOD)]), 3, max_in_flight=1
    )
    assert [isinstance(each, Unscorable) for each in results] == [False, True, False]
    assert len(endpoint.requests) == 3
    assert all(request["response_format"]["type"] == "json_schema" for request in endpoint.requests)


def checked(models: Reply, model: str = MODEL) -> str:
    """The error of the check, "" for success; asserts that it is fast."""

    async def main() -> str:
        async with Endpoint(lambda _: Reply(), models) as endpoint:
            return await check_error(endpoint.url, model)

    return asyncio.run(main())


async def check_error(url: str, model: str = MODEL) -> str:
    client = client_of(url, model, api_key_env="JUDGE_KEY")
    await client.start()
    started = time.monotonic()
    try:
        await client.check()
    except RewardError as error:
        return str(error)
    finally:
        await client.close()
        assert time.monotonic() - started < 5
    return ""


def test_the_check_of_an_endpoint() -> None:
    good = json.dumps({"data": [{"id": MODEL}, {"id": "other"}]})
    assert checked(Reply(body=good)) == ""
    assert "has no model 'gpt'; it has judge-model, other." in checked(Reply(body=good), "gpt")
    assert "does not answer within 4 s" in checked(Reply(body=good, delay_s=20))
    assert "environment variable JUDGE_KEY" in checked(Reply(status=401))
    assert "usually ends in /v1" in checked(Reply(status=404))
    assert "without a list of models" in checked(Reply(body="<html>"))
    assert "cannot be reached" in asyncio.run(check_error(f"http://127.0.0.1:{closed_port()}/v1"))
    assert "cannot be reached" in asyncio.run(check_error("http://no-such-host.invalid/v1"))

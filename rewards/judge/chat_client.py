"""A client for chat models behind an OpenAI-compatible endpoint (`vllm serve`, or a provider's).

Answers are requested as JSON of a schema (`response_format: json_schema`). If the endpoint refuses this with status
400, the client requests any JSON object, then plain text; the first format that works is kept for the run. Timeouts,
lost connections, 429 and 5xx are retried after a growing pause. A pause requested by `Retry-After` delays all calls.
All other failures of a call raise `Unscorable`, with a reason that never contains the API key.

Left out: streaming, tools, proxies, and endpoints that need another header than `Authorization: Bearer`.
"""

import asyncio
import email.utils
import json
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from volley.rewards.item import Unscorable
from volley.rollout.errors import RewardError

CHECK_TIMEOUT_S = 4.0
BACKOFF_S = 0.5
MAX_PAUSE_S = 60.0
MAX_REPLY_BYTES = 4 << 20
MAX_REASON = 160
RETRIED = frozenset({408, 409, 425, 429})

Message = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How to reach a model."""

    endpoint: str
    """An OpenAI-compatible endpoint, up to `/v1`."""
    model: str
    """The name of the model at the endpoint."""
    max_in_flight: int = 16
    """Maximum number of concurrent calls."""
    timeout_s: float = 60.0
    """Time limit of one attempt."""
    retries: int = 3
    """Number of attempts after the first one."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable with the API key. No key is sent if it is not set."""
    price_per_million_tokens: dict[str, float] = field(default_factory=dict)
    """Prices as {prompt: NUMBER, completion: NUMBER}, for the metric `cost`."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields to add to every request; null removes a field."""


class ChatClient:
    """Asks one model, with retries."""

    def __init__(self, options: ChatOptions, backoff_s: float = BACKOFF_S) -> None:
        """backoff_s: the first pause between attempts."""
        self.endpoint = options.endpoint.rstrip("/")
        self.model = options.model
        self.counts: Counter[str] = Counter()
        """Calls, retries and tokens so far."""
        self.seconds = 0.0
        """Duration of all calls so far, including retries."""
        self._options = options
        self._key = os.environ.get(options.api_key_env, "").strip() if options.api_key_env else ""
        self._backoff_s = backoff_s
        self._slots = asyncio.Semaphore(options.max_in_flight)
        self._session: aiohttp.ClientSession | None = None
        self._not_before = 0.0
        self._format = 0
        self._format_is_known = False

    @property
    def cost(self) -> float:
        """Cost of all calls so far, in the currency of the prices."""
        prices = self._options.price_per_million_tokens
        return sum(self.counts[f"{kind}_tokens"] * price for kind, price in prices.items()) / 1e6

    async def start(self) -> None:
        """Open the session; required before `check` and `ask`."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        connector = aiohttp.TCPConnector(limit=self._options.max_in_flight)
        self._session = aiohttp.ClientSession(headers=headers, connector=connector)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def check(self) -> None:
        """Raises RewardError unless the endpoint answers within `CHECK_TIMEOUT_S` and has the model."""
        where = f"the judge's endpoint {self.endpoint}"
        try:
            status, body, _ = await self._send("GET", "/models", None, CHECK_TIMEOUT_S)
        except TimeoutError:
            raise RewardError(
                f"{where} does not answer within {CHECK_TIMEOUT_S:g} s; start it, or fix 'endpoint' in the recipe."
            ) from None
        except (aiohttp.ClientError, ValueError) as error:
            raise RewardError(
                f"{where} cannot be reached ({self._excerpt(error)}); start it, or fix 'endpoint' in the recipe."
            ) from None
        if status in (401, 403):
            raise RewardError(
                f"{where} refuses the key (status {status}); set a valid one in the environment variable "
                f"{self._options.api_key_env or 'named by api_key_env'}."
            )
        try:
            models = [str(each["id"]) for each in json.loads(body)["data"]] if status == 200 else None
        except (ValueError, KeyError, TypeError, RecursionError):
            models = None
        if models is None:
            raise RewardError(
                f"{where} answers {self.endpoint}/models with status {status} and without a list of models; an "
                "endpoint usually ends in /v1."
            )
        if self.model not in models:
            raise RewardError(
                f"{where} has no model '{self.model}'; it has {', '.join(models[:5]) or 'none'}"
                f"{' and others' if len(models) > 5 else ''}."
            )

    async def ask(self, messages: Sequence[Message], schema: Mapping[str, Any], **options: Any) -> str:
        """The model's answer: text that should be JSON of this schema. Raises Unscorable if there is none."""
        async with self._slots:
            self.counts["calls"] += 1
            started = time.perf_counter()
            try:
                return await self._ask(messages, schema, options)
            finally:
                self.seconds += time.perf_counter() - started

    async def _ask(self, messages: Sequence[Message], schema: Mapping[str, Any], options: Mapping[str, Any]) -> str:
        shape, attempts = self._format, 1
        while True:
            request = {"model": self.model, "messages": list(messages), **options, **_format(shape, schema)}
            request = {name: value for name, value in {**request, **self._options.extra}.items() if value is not None}
            await self._wait_for_pause()
            status, body, pause_s = 0, b"", 0.0
            try:
                status, body, pause_s = await self._send("POST", "/chat/completions", request, self._options.timeout_s)
                reason = f"the endpoint answers with status {status}: {self._excerpt(body)}"
            except TimeoutError:
                reason = f"no answer within {self._options.timeout_s:g} s"
            except (aiohttp.ClientError, ValueError) as error:
                reason = f"the endpoint cannot be reached or does not speak HTTP ({self._excerpt(error)})"
            if status == 200:
                if not self._format_is_known:
                    self._format, self._format_is_known = shape, True
                return self._read(body)
            if status == 400 and shape < _next_format(shape, self._format, self._format_is_known):
                shape = _next_format(shape, self._format, self._format_is_known)
                continue
            if status and status not in RETRIED and status < 500:
                raise Unscorable(reason)
            if attempts > self._options.retries:
                raise Unscorable(f"{reason} (tried {attempts} times)" if attempts > 1 else reason)
            if pause_s > MAX_PAUSE_S:
                raise Unscorable(f"{reason} (requests a pause of {pause_s:g} s)")
            self.counts["retries"] += 1
            self._not_before = max(self._not_before, time.monotonic() + pause_s)
            await asyncio.sleep(min(MAX_PAUSE_S, self._backoff_s * 2 ** (attempts - 1) * (1 + random.random())))
            attempts += 1

    async def _wait_for_pause(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def _send(self, method: str, path: str, content: Any, timeout_s: float) -> tuple[int, bytes, float]:
        """The status, the body, and the pause in seconds that the endpoint requests."""
        assert self._session is not None, "call ChatClient.start first"
        # ASCII, because a lone surrogate in a response cannot be encoded as UTF-8.
        data = None if content is None else json.dumps(content).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with self._session.request(
            method, self.endpoint + path, data=data, headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            body = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                body += chunk
                if len(body) > MAX_REPLY_BYTES:
                    raise ValueError(f"the reply is longer than {MAX_REPLY_BYTES} bytes")
            return response.status, bytes(body), _pause(response.headers.get("Retry-After", ""))

    def _read(self, body: bytes) -> str:
        try:
            reply = json.loads(body)
            choice = reply["choices"][0]
            message = choice["message"]
            content, refusal, end = message.get("content"), message.get("refusal"), choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise Unscorable(f"the endpoint's reply is not a chat completion: {self._excerpt(body)}") from None
        usage = reply.get("usage")
        for kind in ("prompt_tokens", "completion_tokens"):
            number = usage.get(kind) if isinstance(usage, dict) else None
            self.counts[kind] += number if type(number) is int and number > 0 else 0
        if refusal:
            raise Unscorable("the judge refuses to answer")
        if end == "length":
            raise Unscorable("the judge's answer is cut off at max_tokens")
        if not isinstance(content, str):
            raise Unscorable("the judge's answer contains no text")
        return content

    def _excerpt(self, what: Any) -> str:
        """One short line for an error message, without the API key."""
        text = what.decode(errors="replace") if isinstance(what, bytes) else f"{type(what).__name__}: {what}"
        text = " ".join((text.replace(self._key, "***") if self._key else text).split())
        return text if len(text) <= MAX_REASON else text[:MAX_REASON] + "..."


def _format(shape: int, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a request that asks for JSON: of the schema (0), any object (1), or not at all (2)."""
    if shape == 0:
        judgement = {"name": "judgement", "strict": True, "schema": dict(schema)}
        return {"response_format": {"type": "json_schema", "json_schema": judgement}}
    return {"response_format": {"type": "json_object"}} if shape == 1 else {}


def _next_format(shape: int, current: int, is_known: bool) -> int:
    """What to try after a 400: the format that has worked in the meantime, or the next simpler one."""
    return current if is_known else min(shape + 1, 2)


def _pause(header: str) -> float:
    """Retry-After (RFC 9110, 10.2.3): seconds, or a date; 0 for anything else."""
    if header.strip().isascii() and header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0

"""The one door to chat models behind an OpenAI-compatible endpoint (`vllm serve`, or a provider's).

Answers are asked for as JSON of a schema (`response_format: json_schema`). An endpoint that refuses this with status
400 is asked for any JSON object, then for text; what it first answers to is kept for the run. Timeouts, lost
connections, 429 and 5xx are tried again, after a growing pause or what `Retry-After` says, which holds back all calls.
Everything else that goes wrong with a call is `Unscorable`, with a reason that never holds the key.

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
from typing import Any

import aiohttp

from volley.rewards.item import Unscorable
from volley.rollout.errors import RewardError

CHECK_TIMEOUT_S = 4.0
BACKOFF_S = 0.5
LONGEST_PAUSE_S = 60.0
MAX_REPLY_BYTES = 4 << 20
MAX_REASON = 160
RETRIED = frozenset({408, 409, 425, 429})

Message = Mapping[str, str]


class ChatClient:
    """Asks one model. endpoint: up to `/v1`. timeout_s: of one try. retries: further tries of a call. api_key_env: the
    variable that holds the key; no key is sent where it is not set. price_per_million_tokens: of `prompt` and
    `completion`. extra: joins every request (and removes from it what is null). backoff_s: the first pause."""

    def __init__(
        self,
        endpoint: str,
        model: str,
        *,
        max_in_flight: int = 16,
        timeout_s: float = 60.0,
        retries: int = 3,
        api_key_env: str = "",
        price_per_million_tokens: Mapping[str, float] | None = None,
        extra: Mapping[str, Any] | None = None,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.model = model
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self._timeout_s = timeout_s
        self._retries = retries
        self._key_variable = api_key_env
        self._key = os.environ.get(api_key_env, "").strip() if api_key_env else ""
        self._price = dict(price_per_million_tokens or {})
        self._extra = dict(extra or {})
        self._backoff_s = backoff_s
        self._max_in_flight = max_in_flight
        self._slots = asyncio.Semaphore(max_in_flight)
        self._session: aiohttp.ClientSession | None = None
        self._not_before = 0.0
        self._format = 0
        self._format_is_known = False

    @property
    def cost(self) -> float:
        """Of all calls so far, in the currency of the prices."""
        return sum(self.counts[f"{kind}_tokens"] * price for kind, price in self._price.items()) / 1e6

    async def start(self) -> None:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        connector = aiohttp.TCPConnector(limit=self._max_in_flight)
        self._session = aiohttp.ClientSession(headers=headers, connector=connector)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def check(self) -> None:
        """Raises RewardError unless the endpoint answers and has the model; takes `CHECK_TIMEOUT_S` at most."""
        where = f"the judge's endpoint {self.endpoint}"
        try:
            status, body, _ = await self._send("GET", "/models", None, CHECK_TIMEOUT_S)
        except TimeoutError:
            raise RewardError(
                f"{where} does not answer within {CHECK_TIMEOUT_S:g} s; start it, or mend 'endpoint' in the recipe."
            ) from None
        except (aiohttp.ClientError, ValueError) as error:
            raise RewardError(
                f"{where} cannot be reached ({self._shown(error)}); start it, or mend 'endpoint' in the recipe."
            ) from None
        if status in (401, 403):
            raise RewardError(
                f"{where} refuses the key (status {status}); put a valid one into the environment variable "
                f"{self._key_variable or 'that api_key_env names'}."
            )
        try:
            models = [str(each["id"]) for each in json.loads(body)["data"]] if status == 200 else None
        except (ValueError, KeyError, TypeError, RecursionError):
            models = None
        if models is None:
            raise RewardError(
                f"{where} answers {self.endpoint}/models with status {status} and no list of models; an endpoint "
                "usually ends in /v1."
            )
        if self.model not in models:
            raise RewardError(
                f"{where} has no model '{self.model}'; it has {', '.join(models[:5]) or 'none'}"
                f"{' and others' if len(models) > 5 else ''}."
            )

    async def ask(self, messages: Sequence[Message], schema: Mapping[str, Any], **options: Any) -> str:
        """The model's answer, text that should be JSON of this schema. Raises Unscorable if there is none."""
        async with self._slots:
            self.counts["calls"] += 1
            started = time.perf_counter()
            try:
                return await self._ask(messages, schema, options)
            finally:
                self.seconds += time.perf_counter() - started

    async def _ask(self, messages: Sequence[Message], schema: Mapping[str, Any], options: Mapping[str, Any]) -> str:
        shape, tries = self._format, 0
        while True:
            request = {"model": self.model, "messages": list(messages), **options, **_format(shape, schema)}
            request = {name: value for name, value in {**request, **self._extra}.items() if value is not None}
            await self._until_wanted()
            status, body, pause_s = 0, b"", 0.0
            try:
                status, body, pause_s = await self._send("POST", "/chat/completions", request, self._timeout_s)
                reason = f"the endpoint answers with status {status}: {self._shown(body)}"
            except TimeoutError:
                reason = f"no answer within {self._timeout_s:g} s"
            except (aiohttp.ClientError, ValueError) as error:
                reason = f"the endpoint cannot be reached or speaks no HTTP ({self._shown(error)})"
            if status == 200:
                if not self._format_is_known:
                    self._format, self._format_is_known = shape, True
                return self._read(body)
            if status == 400 and shape < _next_format(shape, self._format, self._format_is_known):
                shape = _next_format(shape, self._format, self._format_is_known)
                continue
            if status and status not in RETRIED and status < 500:
                raise Unscorable(reason)
            if tries == self._retries:
                raise Unscorable(f"{reason} (tried {tries + 1} times)" if tries else reason)
            if pause_s > LONGEST_PAUSE_S:
                raise Unscorable(f"{reason} (asks for a pause of {pause_s:g} s)")
            tries += 1
            self.counts["retries"] += 1
            self._not_before = max(self._not_before, time.monotonic() + pause_s)
            await asyncio.sleep(min(LONGEST_PAUSE_S, self._backoff_s * 2 ** (tries - 1) * (1 + random.random())))

    async def _until_wanted(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def _send(self, method: str, path: str, content: Any, timeout_s: float) -> tuple[int, bytes, float]:
        """Status, body, and the pause that the endpoint asks for, in seconds."""
        assert self._session is not None, "ChatClient.start comes first"
        # ASCII, so that a lone surrogate in a response is sent as it is and not an error of ours.
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
            raise Unscorable(f"the endpoint's reply is no chat completion: {self._shown(body)}") from None
        usage = reply.get("usage")
        for kind in ("prompt_tokens", "completion_tokens"):
            number = usage.get(kind) if isinstance(usage, dict) else None
            self.counts[kind] += number if type(number) is int and number > 0 else 0
        if refusal:
            raise Unscorable("the judge refuses to answer")
        if end == "length":
            raise Unscorable("the judge's answer is cut off at max_tokens")
        if not isinstance(content, str):
            raise Unscorable("the judge's answer holds no text")
        return content

    def _shown(self, what: Any) -> str:
        """One short line for a reason, without the key."""
        text = what.decode(errors="replace") if isinstance(what, bytes) else f"{type(what).__name__}: {what}"
        text = " ".join((text.replace(self._key, "***") if self._key else text).split())
        return text if len(text) <= MAX_REASON else text[:MAX_REASON] + "..."


def _format(shape: int, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The request's part that asks for JSON: of the schema, of any shape, or not at all."""
    if shape == 0:
        judgement = {"name": "judgement", "strict": True, "schema": dict(schema)}
        return {"response_format": {"type": "json_schema", "json_schema": judgement}}
    return {"response_format": {"type": "json_object"}} if shape == 1 else {}


def _next_format(shape: int, current: int, is_known: bool) -> int:
    """What to try after a 400: the format that was found to work meanwhile, or the next plainer one."""
    return current if is_known else min(shape + 1, 2)


def _pause(header: str) -> float:
    """Retry-After (RFC 9110, 10.2.3): seconds, or a date; 0 for anything else."""
    if header.strip().isascii() and header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0

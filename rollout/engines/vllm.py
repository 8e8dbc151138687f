"""vLLM in this process behind the `Engine` protocol, and the functions that it shares with `async_vllm`.

One thread owns the engine; the event loop passes it requests and receives completions. A request takes part from the
first engine step after the turn of the event loop in which it was submitted, and an idle engine clears its prefix cache
before it starts again. What is computed therefore depends on the requests and the weights, never on timing.

Log-probs are vLLM's `processed_logprobs`: those of the distribution that it sampled from.

Left out: LoRA, speculative decoding, multi-modal prompts; engines in other processes (see `async_vllm`).
"""

import asyncio
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from volley.rollout.config import RolloutConfig
from volley.rollout.errors import ConfigError
from volley.rollout.transport.load import load_into_model
from volley.rollout.types import Completion, Logprobs, Sampling, TokenIds

T = TypeVar("T")
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True)
class EngineSpec:
    """What an engine loads and how it runs."""

    model_dir: str
    tokenizer: Any
    """Of `transformers`; decodes the completions."""
    config: RolloutConfig
    dtype: str
    """"bf16" or "fp32"."""
    max_model_len: int
    """Upper limit of prompt plus completion, in tokens."""
    seed: int = 0


def engine_args(spec: EngineSpec) -> dict[str, Any]:
    """The arguments that both of vLLM's engines take."""
    config = spec.config
    return {
        "model": spec.model_dir,
        "dtype": DTYPES[spec.dtype],
        "seed": spec.seed,
        "max_model_len": spec.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        # Whole prompts fit into a step together with a full batch of decoding sequences.
        "max_num_batched_tokens": max(2 * spec.max_model_len, 16 * config.max_num_seqs, 2048),
        # vLLM 0.32 rewinds the random generator of a request whose prompt it splits, which a CPU generator cannot do.
        "enable_chunked_prefill": None if torch.cuda.is_available() else False,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enforce_eager": config.enforce_eager,
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        # With it the batch of a step, and therefore rounding, would depend on when the last step finished.
        "async_scheduling": False,
        "generation_config": "vllm",
        "disable_log_stats": True,
    }


def sampling_params(sampling: Sampling, seed: int) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        n=1,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        stop=list(sampling.stop) or None,
        seed=seed,
        logprobs=0,
        flat_logprobs=True,
        # Text is decoded once at the end, unless vLLM has to watch for stop strings.
        detokenize=bool(sampling.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def logprob_params() -> Any:
    """Parameters of a request that only returns its prompt's log-probs, at temperature 1."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)


@dataclass(frozen=True)
class WeightsGeneration:
    """The time between two loads of weights."""

    number: int = 0
    """Increases with every load, also when the same version is loaded again."""
    version: int = 0
    """The version that is served, as far as it is known when the generation begins."""

    def next(self, version: int) -> "WeightsGeneration":
        return WeightsGeneration(self.number + 1, version)

    def prompt(self, token_ids: TokenIds) -> dict[str, Any]:
        """A prompt for the engine. The salt keeps it from using prefix-cache blocks that other weights computed."""
        return {"prompt_token_ids": token_ids.tolist(), "cache_salt": f"weights-{self.number}"}


def read_completion(output: Any, tokenizer: Any, has_stop_strings: bool, entered: WeightsGeneration) -> Completion:
    """The completion in vLLM's output.

    entered: the generation in which the engine received the request. A request that waited there while weights were
    loaded may have used prefix-cache blocks of the old weights, so its first version is no later than that one.
    """
    token_ids = list(output.token_ids)
    spans = output.weight_versions
    return Completion.single(
        token_ids,
        output.logprobs.logprobs,
        output.text if has_stop_strings else tokenizer.decode(token_ids, skip_special_tokens=True),
        "length" if output.finish_reason == "length" else "stop",
        min(entered.version, _version(spans[0].version)),
        _version(spans[-1].version),
    )


def _version(label: str) -> int:
    """vLLM's label for the initial weights is "default"."""
    return 0 if label == "default" else int(label)


def read_prompt_logprobs(token_ids: TokenIds, output: Any) -> Logprobs:
    """The log-probs of all tokens but the first in vLLM's output."""
    ids = token_ids.tolist()
    return np.array([output.prompt_logprobs[i][ids[i]].logprob for i in range(1, len(ids))], np.float32)


def _load_into_worker(worker: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    load_into_model(worker.vllm_config, worker.model_runner.get_model(), weights)


class VllmEngine:
    """The engine in this process. Start the learner first, because vLLM joins its process group."""

    def __init__(self, spec: EngineSpec) -> None:
        """Raises what vLLM raises when the model does not load."""
        self.version = 0
        # vLLM has its own queue, and a synchronous run needs all requests in one engine step.
        self.capacity = math.inf
        self._tokenizer = spec.tokenizer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vllm")
        self._turn = asyncio.Lock()
        self._generation = WeightsGeneration()
        self._queued: list[tuple[str, TokenIds, Any]] = []
        self._futures: dict[str, asyncio.Future[Any]] = {}
        self._reads: dict[str, Callable[[Any, WeightsGeneration], Any]] = {}
        self._entered: dict[str, WeightsGeneration] = {}
        self._aborted: list[str] = []
        self._num_requests = 0
        self._pump_task: asyncio.Task[None] | None = None
        self._interrupt = False
        self._engine = self._thread.submit(self._start, engine_args(spec)).result()

    @staticmethod
    def _start(args: dict[str, Any]) -> Any:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        logging.getLogger("vllm").setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"))
        return LLMEngine.from_engine_args(EngineArgs(**args))

    def submit(self, token_ids: TokenIds, sampling: Sampling, seed: int) -> list[asyncio.Future[Completion]]:
        """See `Engine.submit`."""
        return [
            self._enqueue(
                token_ids,
                sampling_params(sampling, (seed + i) % 2**63),
                lambda output, generation: read_completion(
                    output.outputs[0], self._tokenizer, bool(sampling.stop), generation
                ),
            )
            for i in range(sampling.num_samples)
        ]

    async def logprobs(self, sequences: Sequence[TokenIds]) -> list[Logprobs]:
        """See `Engine.logprobs`."""

        def ask(ids: TokenIds) -> asyncio.Future[Logprobs]:
            return self._enqueue(ids, logprob_params(), lambda output, _: read_prompt_logprobs(ids, output))

        return list(await asyncio.gather(*map(ask, sequences)))

    async def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Load new weights (names and tensors of a Hugging Face checkpoint). Requests in flight pause, keep their
        tokens, and continue under the new weights; their completions record both versions."""

        def load() -> None:
            self._generation = self._generation.next(version)
            self._engine.collective_rpc(_load_into_worker, args=(weights,))
            self._engine.set_weight_version(str(version))

        await self._in_turn(load)
        self.version = version

    async def close(self) -> None:
        """See `Engine.close`."""
        if self._pump_task is not None:
            self._pump_task.cancel()
            await asyncio.gather(self._pump_task, return_exceptions=True)
        self._fail(RuntimeError("the engine was closed"))
        self._interrupt = True
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.engine_core.shutdown)
        self._thread.shutdown(wait=False)

    def _enqueue(
        self, token_ids: TokenIds, params: Any, read: Callable[[Any, WeightsGeneration], T]
    ) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        self._num_requests += 1
        request_id = str(self._num_requests)
        future: asyncio.Future[T] = loop.create_future()
        self._futures[request_id] = future
        self._reads[request_id] = read
        self._queued.append((request_id, token_ids, params))
        future.add_done_callback(lambda done: self._aborted.append(request_id) if done.cancelled() else None)
        self._interrupt = True
        if self._pump_task is None or self._pump_task.done():
            self._pump_task = loop.create_task(self._pump(), name="vllm pump")
        return future

    async def _pump(self) -> None:
        """Run the engine while any request is unfinished."""
        try:
            while self._futures:
                for request_id, result in await self._in_turn(self._run):
                    future = self._futures.pop(request_id)
                    if not future.done():
                        future.set_result(result)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        futures, self._futures = self._futures, {}
        for future in futures.values():
            if not future.done():
                future.set_exception(error)

    async def _in_turn(self, work: Callable[[], T]) -> T:
        """Run `work` in the engine's thread between two steps; callers are served in order."""
        self._interrupt = True
        async with self._turn:
            self._interrupt = False
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _run(self) -> list[tuple[str, Any]]:
        """In the engine's thread: take the queued requests, then step until a request ends or a caller waits."""
        engine = self._engine
        self._abort_cancelled()
        if not engine.has_unfinished_requests():
            engine.reset_prefix_cache()
        queued, self._queued = self._queued, []
        for request_id, token_ids, params in queued:
            self._entered[request_id] = self._generation
            engine.add_request(request_id, self._generation.prompt(token_ids), params)
        done: list[tuple[str, Any]] = []
        while engine.has_unfinished_requests() and not done:
            for output in engine.step():
                if output.finished:
                    name = output.request_id
                    done.append((name, self._reads.pop(name)(output, self._entered.pop(name))))
            if self._interrupt:
                break
        return done

    def _abort_cancelled(self) -> None:
        aborted, self._aborted = self._aborted, []
        if aborted:
            gone = set(aborted)
            self._queued = [request for request in self._queued if request[0] not in gone]
            self._engine.abort_request(aborted)
            for request_id in aborted:
                self._futures.pop(request_id, None)
                self._reads.pop(request_id, None)
                self._entered.pop(request_id, None)


def dtype_of(config: RolloutConfig, learner_dtype: str) -> str:
    """The engine's dtype: its own, or the learner's when "auto"."""
    dtype = learner_dtype if config.dtype == "auto" else config.dtype
    if dtype not in DTYPES:
        raise ConfigError(f"rollout.dtype is '{dtype}'; it must be one of {', '.join(DTYPES)}.")
    return dtype

"""vLLM with its core in processes of its own (`AsyncLLM`): what a rollout worker of a cluster holds.

New weights come through vLLM's weight-transfer API: `connect` to the learner's group, `receive` while requests go on,
`commit`, which alone pauses them: they freeze, keep what they have, and go on under the new weights.

Left out: what `vllm_engine` leaves out; pipeline and data parallelism inside one engine.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
import xxhash

from volley.rollout.config import RolloutConfig
from volley.rollout.engines.vllm import (
    WeightsGeneration,
    engine_args,
    logprob_params,
    read_completion,
    read_prompt_logprobs,
    sampling_params,
)
from volley.rollout.transport.protocol import JoinRequest, ReceiverEnd
from volley.rollout.transport.stream import TensorMeta, TransportError
from volley.rollout.types import Completion, LoadedWeights, Logprobs, Sampling, TokenIds

POLL_S = 0.002
SHARED_MEMORY = Path("/dev/shm")


class WorkerExtension:
    """Mixed into vLLM's worker in the engine's processes: what the weight-transfer API does not tell."""

    weight_transfer_engine: Any

    model_runner: Any

    def volley_is_receiving(self) -> bool:
        return getattr(self.weight_transfer_engine, "is_receiving", False)

    def volley_stream_checksum(self) -> str:
        return getattr(self.weight_transfer_engine, "checksum", "")

    def volley_weight_digest(self) -> str:
        return digest_of(self.model_runner.get_model())

    def volley_process_id(self) -> int:
        return os.getpid()


def digest_of(model: torch.nn.Module) -> str:
    """Of a model's parameters, name by name. XXH3 takes a tenth of the time of the SHA-256 that vLLM's
    `compute_weight_checksums` computes on the host (measured); on an accelerator the words of a tensor are folded by
    XOR where they lie, which sees any one flipped bit and copies nothing."""
    total = xxhash.xxh3_64()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().contiguous().view(-1).view(torch.uint8)
        whole = flat.numel() // 8 * 8
        total.update(name.encode())
        if flat.device.type == "cpu":
            total.update(flat.numpy().data)
        else:
            folded = torch.hash_tensor(flat[:whole].view(torch.int64)).item()
            total.update(f"{folded} {flat[whole:].tolist()}".encode())
    return total.hexdigest()


def unname_shared_memory() -> None:
    """Take the names of the semaphores and segments away through which this process and its children talk, now that all
    of them have them open: then they go with the last of these processes, however it ends. Else each killed engine
    leaves them behind (with two tensor-parallel ranks 700 MB), because Ray kills with an actor the process that Python
    has for removing them. Linux; elsewhere nothing happens."""
    held = set()
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(OSError):
            # By device and inode: the C library maps a semaphore under another name than it gives it.
            for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                device, inode = line.split()[3:5]
                held.add((tuple(int(part, 16) for part in device.split(":")), int(inode)))
    for kind in ("sem.mp-*", "psm_*"):
        for path in SHARED_MEMORY.glob(kind):
            with suppress(OSError):
                found = path.stat()
                if ((os.major(found.st_dev), os.minor(found.st_dev)), found.st_ino) in held:
                    path.unlink()


class AsyncVllmEngine(ReceiverEnd):
    """Construct and use it on one event loop. transport: the weight-transfer backend ("gloo", "nccl"). ray_metrics:
    show vLLM's own metrics in Ray's, as `ray_vllm_*`. address: of this machine, for weight transfers.

    version: of the weights being served, -1 while an update that failed half-way makes them unknown. num_steps: engine
    steps seen so far; a number that stands still with requests in flight is an engine that hangs.
    """

    def __init__(
        self,
        model_dir: str,
        tokenizer: Any,
        config: RolloutConfig,
        dtype: str,
        max_model_len: int,
        *,
        seed: int = 0,
        transport: str = "gloo",
        ray_metrics: bool = False,
        address: str = "127.0.0.1",
    ) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from volley.rollout.transport.register import register

        register()
        self.version = 0
        self.num_steps = 0
        self._tokenizer = tokenizer
        self._transport = transport
        self._address = address
        self._is_updating = False
        self._generation = WeightsGeneration()
        self._num_requests = 0
        self._num_ranks = config.tensor_parallel
        self._tasks: set[asyncio.Task[Any]] = set()
        args = engine_args(model_dir, config, dtype, max_model_len, seed)
        self._engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                **args,
                tensor_parallel_size=config.tensor_parallel,
                distributed_executor_backend=_executor(config.tensor_parallel),
                weight_transfer_config={"backend": transport},
                worker_extension_cls="volley.rollout.engines.async_vllm.WorkerExtension",
            ),
            stat_loggers=_ray_stat_loggers() if ray_metrics else None,
        )
        unname_shared_memory()
        self._count_steps()

    @property
    def capacity(self) -> int:
        """Samples that its KV cache serves at once, if they fill on average half of the length they may have."""
        config = self._engine.vllm_config
        num_tokens = config.cache_config.num_gpu_blocks * config.cache_config.block_size
        return max(1, min(config.scheduler_config.max_num_seqs, 2 * num_tokens // config.model_config.max_model_len))

    @property
    def is_dead(self) -> bool:
        """Whether its processes are gone."""
        return bool(self._engine.errored)

    async def process_ids(self) -> list[int]:
        """Of the processes that hold the model."""
        return list(await self._engine.collective_rpc("volley_process_id"))

    def submit(self, token_ids: TokenIds, sampling: Sampling, seed: int) -> list[asyncio.Future[Completion]]:
        """As `Engine.submit`."""
        return [
            self._spawn(self._sample(token_ids, sampling_params(sampling, (seed + i) % 2**63), bool(sampling.stop)))
            for i in range(sampling.num_samples)
        ]

    async def logprobs(self, sequences: Sequence[TokenIds]) -> list[Logprobs]:
        """As `Engine.logprobs`."""
        outputs = await asyncio.gather(*(self._last(ids, logprob_params()) for ids in sequences))
        return [read_prompt_logprobs(ids, output) for (output, _), ids in zip(outputs, sequences, strict=True)]

    async def connect(self, request: JoinRequest) -> None:
        """As `ReceiverEnd.connect`."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        info = request.init_info(self._transport, self._address)
        with self._transport_errors():
            await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(info))

    async def receive(self, metas: Sequence[TensorMeta]) -> str:
        """As `ReceiverEnd.receive`. Over gloo the engine keeps generating, and an error leaves its weights unchanged.
        The other transports load while they receive: they pause the engine, and an error leaves weights that must not
        be served (version -1)."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        announcement = {
            "names": [meta.name for meta in metas],
            "dtype_names": [meta.dtype for meta in metas],
            "shapes": [list(meta.shape) for meta in metas],
        }
        with self._transport_errors():
            if self._transport != "gloo":
                self._generation = self._generation.next(self._generation.version)
                await self._pause()
                self.version = -1
            # What was received whole but never committed, because another engine was lost, is simply sent again.
            if not self._is_updating:
                await self._engine.start_weight_update()
                self._is_updating = True
            await self._engine.update_weights(WeightTransferUpdateRequest(announcement))
            if self._transport != "gloo":
                return ""
            while any(await self._engine.collective_rpc("volley_is_receiving")):
                await asyncio.sleep(POLL_S)
            await self._engine.update_weights(WeightTransferUpdateRequest({"last": True}))
            checksums = set(await self._engine.collective_rpc("volley_stream_checksum"))
        if len(checksums) > 1:
            raise TransportError(f"receive: the engine's {self._num_ranks} ranks received different streams")
        return str(checksums.pop())

    async def commit(self, version: int) -> LoadedWeights:
        """As `ReceiverEnd.commit`."""
        self._generation = self._generation.next(version)
        await self._pause()
        self.version = -1
        await self._engine.finish_weight_update(str(version))
        self._is_updating = False
        digests = await self._engine.collective_rpc("volley_weight_digest")
        return LoadedWeights(int(await self._engine.get_weight_version()), " ".join(digests))

    async def resume(self) -> int:
        """As `ReceiverEnd.resume`."""
        self.version = self._generation.version
        await self._engine.resume_generation()
        return self.version

    async def close(self) -> None:
        """As `Engine.close`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._engine.shutdown()

    @contextmanager
    def _transport_errors(self) -> Iterator[None]:
        """What goes wrong inside the engine's processes comes as a plain exception; the death of one stays as it is."""
        try:
            yield
        except Exception as error:
            if self.is_dead:
                raise
            # vLLM closes the session of an update that failed.
            self._is_updating = False
            lines = [line for line in str(error).splitlines() if "TransportError" in line] or [str(error)]
            raise TransportError(lines[-1].rpartition("TransportError: ")[2].strip("'\"()")) from None

    async def _pause(self) -> None:
        """As `AsyncLLM.pause_generation`, without the 20 ms that it sleeps for tidiness."""
        await self._engine.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)

    def _count_steps(self) -> None:
        """Every message of the core passes here, also those that end no request."""
        process = self._engine.output_processor.process_outputs

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.num_steps += 1
            return process(*args, **kwargs)

        self._engine.output_processor.process_outputs = counted

    async def _last(self, token_ids: TokenIds, params: Any) -> tuple[Any, WeightsGeneration]:
        """The final output, and when the engine was handed the request."""
        self._num_requests += 1
        generation = self._generation
        outputs: AsyncIterator[Any] = self._engine.generate(
            generation.prompt(token_ids), params, str(self._num_requests)
        )
        async for output in outputs:
            if output.finished:
                return output, generation
        raise RuntimeError("vLLM ended a request without a final output")

    async def _sample(self, token_ids: TokenIds, params: Any, has_stop_strings: bool) -> Completion:
        output, generation = await self._last(token_ids, params)
        return read_completion(output.outputs[0], self._tokenizer, has_stop_strings, generation)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _ray_stat_loggers() -> list[Any]:
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    return [RayPrometheusStatLogger]


def _executor(num_ranks: int) -> Any:
    """Several ranks are processes of this one: inside an actor vLLM would ask Ray for places of its own. On a CPU vLLM
    puts even a single rank into a process, to bind its threads; ours are bound by whoever starts the worker, so the
    rank can live with the core and no step has to cross from one to the other."""
    if num_ranks > 1:
        return "mp"
    if torch.cuda.is_available():
        return None
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return UniProcExecutor

"""vLLM with its core in other processes (`AsyncLLM`): the engine of a cluster's rollout worker.

New weights arrive through vLLM's weight-transfer API in three steps: `connect` to the learner's group, `receive` while
requests continue, and `commit`. Only `commit` pauses requests; they keep their tokens and continue under the new
weights.

Left out: what `volley.rollout.engines.vllm` leaves out; pipeline and data parallelism inside one engine.
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

from volley.rollout.engines.vllm import (
    EngineSpec,
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
    """Methods added to vLLM's worker in the engine's processes, for what the weight-transfer API does not report."""

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
    """A hash of a model's parameters, name by name.

    XXH3 takes a tenth of the time of the SHA-256 of vLLM's `compute_weight_checksums` (measured). On an accelerator the
    words of a tensor are combined by XOR in place, which detects any single flipped bit and copies nothing.
    """
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
    """Unlink the semaphores and shared memory that this process and its children have open.

    The system then frees them with the last of these processes, however it ends. Otherwise every killed engine would
    leave them behind (700 MB with two tensor-parallel ranks), because Ray kills Python's clean-up process together with
    the actor. Linux only; elsewhere this does nothing.
    """
    held = set()
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(OSError):
            # Compared by device and inode, because the C library maps a semaphore under a different name.
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
    """The engine of a rollout worker, with vLLM's core in other processes. Create and use it on one event loop."""

    def __init__(
        self,
        spec: EngineSpec,
        *,
        transport: str = "gloo",
        exports_metrics: bool = False,
        address: str = "127.0.0.1",
    ) -> None:
        """transport: the weight-transfer backend, "gloo" or "nccl". exports_metrics: show vLLM's own metrics among
        Ray's, as `ray_vllm_*`. address: of this machine, for weight transfers."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from volley.rollout.transport.register import register

        register()
        self.version = 0
        """Weight version being served; -1 while a failed update leaves the weights unknown."""
        self.num_steps = 0
        """Engine steps so far. If it does not change while requests are in flight, the engine hangs."""
        self._tokenizer = spec.tokenizer
        self._transport = transport
        self._address = address
        self._is_updating = False
        self._generation = WeightsGeneration()
        self._num_requests = 0
        self._num_ranks = spec.config.tensor_parallel
        self._tasks: set[asyncio.Task[Any]] = set()
        self._engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                **engine_args(spec),
                tensor_parallel_size=self._num_ranks,
                distributed_executor_backend=_executor(self._num_ranks),
                weight_transfer_config={"backend": transport},
                worker_extension_cls="volley.rollout.engines.async_vllm.WorkerExtension",
            ),
            stat_loggers=_ray_stat_loggers() if exports_metrics else None,
        )
        unname_shared_memory()
        self._count_steps()

    @property
    def capacity(self) -> int:
        """Samples that fit into the KV cache at once, if they use half of the maximum length on average."""
        config = self._engine.vllm_config
        num_tokens = config.cache_config.num_gpu_blocks * config.cache_config.block_size
        return max(1, min(config.scheduler_config.max_num_seqs, 2 * num_tokens // config.model_config.max_model_len))

    @property
    def is_dead(self) -> bool:
        """Whether its processes have ended."""
        return bool(self._engine.errored)

    async def process_ids(self) -> list[int]:
        """The processes that hold the model."""
        return list(await self._engine.collective_rpc("volley_process_id"))

    def submit(self, token_ids: TokenIds, sampling: Sampling, seed: int) -> list[asyncio.Future[Completion]]:
        """See `Engine.submit`."""
        return [
            self._spawn(self._sample(token_ids, sampling_params(sampling, (seed + i) % 2**63), bool(sampling.stop)))
            for i in range(sampling.num_samples)
        ]

    async def logprobs(self, sequences: Sequence[TokenIds]) -> list[Logprobs]:
        """See `Engine.logprobs`."""
        outputs = await asyncio.gather(*(self._last(ids, logprob_params()) for ids in sequences))
        return [read_prompt_logprobs(ids, output) for (output, _), ids in zip(outputs, sequences, strict=True)]

    async def connect(self, request: JoinRequest) -> None:
        """See `ReceiverEnd.connect`."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        info = request.init_info(self._transport, self._address)
        with self._transport_errors():
            await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(info))

    async def receive(self, metas: Sequence[TensorMeta]) -> str:
        """See `ReceiverEnd.receive`. Over gloo the engine keeps generating, and an error leaves its weights unchanged.
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
            # A complete update that was never committed, because another engine was lost, is received again.
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
        """See `ReceiverEnd.commit`."""
        self._generation = self._generation.next(version)
        await self._pause()
        self.version = -1
        await self._engine.finish_weight_update(str(version))
        self._is_updating = False
        digests = await self._engine.collective_rpc("volley_weight_digest")
        return LoadedWeights(int(await self._engine.get_weight_version()), " ".join(digests))

    async def resume(self) -> int:
        """See `ReceiverEnd.resume`."""
        self.version = self._generation.version
        await self._engine.resume_generation()
        return self.version

    async def close(self) -> None:
        """See `Engine.close`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._engine.shutdown()

    @contextmanager
    def _transport_errors(self) -> Iterator[None]:
        """Turn an error in the engine's processes into a `TransportError`; the end of a process is raised unchanged."""
        try:
            yield
        except Exception as error:
            if self.is_dead:
                raise
            # vLLM closes the session of a failed update.
            self._is_updating = False
            lines = [line for line in str(error).splitlines() if "TransportError" in line] or [str(error)]
            raise TransportError(lines[-1].rpartition("TransportError: ")[2].strip("'\"()")) from None

    async def _pause(self) -> None:
        """Like `AsyncLLM.pause_generation`, without its sleep of 20 ms."""
        await self._engine.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)

    def _count_steps(self) -> None:
        """Count the messages of vLLM's core, including those that finish no request."""
        process = self._engine.output_processor.process_outputs

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.num_steps += 1
            return process(*args, **kwargs)

        self._engine.output_processor.process_outputs = counted

    async def _last(self, token_ids: TokenIds, params: Any) -> tuple[Any, WeightsGeneration]:
        """The final output, and the generation in which the engine received the request."""
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
    """vLLM's executor backend.

    Several ranks run as child processes, because inside an actor vLLM would request resources from Ray. On CPUs vLLM
    would start a process even for a single rank, to bind its threads. Here the launcher binds them, so the rank runs in
    the process of vLLM's core, which saves a message per step.
    """
    if num_ranks > 1:
        return "mp"
    if torch.cuda.is_available():
        return None
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return UniProcExecutor

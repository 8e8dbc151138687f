"""Real vLLM behind the engine protocol."""

import asyncio
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from volley.rollout.config import RolloutConfig, TransferConfig
from volley.rollout.engines.async_vllm import SHARED_MEMORY, AsyncVllmEngine
from volley.rollout.engines.vllm import EngineSpec
from volley.rollout.transport.protocol import JoinRequest
from volley.rollout.transport.stream import Group, TensorMeta, TransportError, combined, layout, listen, send
from volley.rollout.types import Completion, LoadedWeights, Sampling, TokenIds, as_token_ids

PROMPT = as_token_ids([10, 13, 16, 9, 14, 17, 18])  # 47+38=?
Run = Callable[[Any], Any]


async def sample(engine: Any, sampling: Sampling, seed: int = 1, prompt: TokenIds = PROMPT) -> list[Completion]:
    return list(await asyncio.gather(*engine.submit(prompt, sampling, seed)))


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Callable[[TokenIds, float], torch.Tensor]:
    """Log-probs of a sequence's tokens by transformers, in float32 from the same bf16 weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).float()

    def logprobs(ids: TokenIds, temperature: float) -> torch.Tensor:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(ids[None], dtype=torch.int64)).logits[0, :-1]
        table = torch.log_softmax(logits / temperature, -1)
        return table.gather(1, torch.tensor(ids[1:], dtype=torch.int64)[:, None])[:, 0]

    return logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_the_sampling_distribution(
    vllm_engine: Any, run: Run, reference: Callable[..., torch.Tensor], temperature: float
) -> None:
    completions = run(sample(vllm_engine, Sampling(8, temperature, max_tokens=30)))
    gaps = []
    for completion in completions:
        expected = reference(np.concatenate([PROMPT, completion.token_ids]), temperature)[len(PROMPT) - 1 :]
        gaps.append((expected - torch.tensor(completion.logprobs)).abs())
    assert torch.cat(gaps).mean() < 0.01


def test_top_p_renormalises_logprobs(vllm_engine: Any, run: Run, reference: Callable[..., torch.Tensor]) -> None:
    for completion in run(sample(vllm_engine, Sampling(4, 1.0, top_p=0.5, max_tokens=20))):
        whole = reference(np.concatenate([PROMPT, completion.token_ids]), 1.0)[len(PROMPT) - 1 :]
        assert torch.all(torch.tensor(completion.logprobs) > whole + 0.3)


def test_samples_repeat_with_the_seed(vllm_engine: Any, run: Run) -> None:
    sampling = Sampling(4, 1.0, max_tokens=20)
    first, again = (run(sample(vllm_engine, sampling, seed=5)) for _ in range(2))
    assert first == again
    assert len({tuple(completion.token_ids) for completion in first}) == 4
    assert run(sample(vllm_engine, sampling, seed=6)) != first


def test_more_prompt_tokens_than_fit_into_a_step(vllm_engine: Any, run: Run) -> None:
    # vLLM's CPU runner fails on a seeded request whose prompt it splits; 96 x 100 tokens exceed its limit of 4,096.
    draw = random.Random(0)
    prompts = [as_token_ids([draw.randrange(8, 18) for _ in range(100)]) for _ in range(96)]

    async def both() -> list[list[Completion]]:
        sampling = Sampling(1, 1.0, max_tokens=4)
        together = await asyncio.gather(*(sample(vllm_engine, sampling, 1, prompt) for prompt in prompts))
        return [*together, await sample(vllm_engine, sampling, 1, prompts[40])]

    *together, (alone,) = run(both())
    assert len(together) == 96
    assert np.array_equal(together[40][0].token_ids, alone.token_ids)


def test_greedy_sampling_and_truncation(vllm_engine: Any, run: Run) -> None:
    (one,), (two,) = (run(sample(vllm_engine, Sampling(1, 0.0, max_tokens=5), seed)) for seed in (1, 2))
    assert np.array_equal(one.token_ids, two.token_ids)
    assert len(one.token_ids) == 5
    assert one.truncated


def test_stop_strings_end_completions_and_are_removed(vllm_engine: Any, run: Run) -> None:
    completions = run(sample(vllm_engine, Sampling(16, 1.0, max_tokens=60, stop=("5",)), seed=3))
    stopped = [completion for completion in completions if not completion.truncated]
    assert stopped
    assert all("5" not in completion.text for completion in completions)


def test_the_end_token_is_in_the_tokens_and_not_in_the_text(vllm_engine: Any, run: Run) -> None:
    completions = run(sample(vllm_engine, Sampling(32, 1.0, max_tokens=80), seed=4))
    ended = [completion for completion in completions if not completion.truncated]
    assert ended
    assert all(completion.token_ids[-1] == 1 and "<eos>" not in completion.text for completion in ended)
    assert all(len(completion.logprobs) == len(completion.token_ids) for completion in completions)


def test_requests_in_flight_survive_a_push_and_carry_both_versions(
    vllm_engine: Any, run: Run, tiny_model: Path
) -> None:
    weights = load_file(tiny_model / "model.safetensors")

    async def push_midway() -> list[Completion]:
        futures = vllm_engine.submit(PROMPT, Sampling(4, 1.0, max_tokens=100), 2)
        await asyncio.sleep(0.05)
        version = vllm_engine.version
        await vllm_engine.load_weights(weights.items(), version + 1)
        return list(await asyncio.gather(*futures))

    before = vllm_engine.version
    completions = run(push_midway())
    assert vllm_engine.version == before + 1
    longest = max(completions, key=lambda completion: len(completion.token_ids))
    assert (longest.first_version, longest.last_version) == (before, before + 1)
    assert {c.first_version for c in run(sample(vllm_engine, Sampling(2, max_tokens=5)))} == {before + 1}


def test_cancelled_requests_leave_the_engine_serving(vllm_engine: Any, run: Run) -> None:
    async def cancel_then_sample() -> list[Completion]:
        for future in vllm_engine.submit(PROMPT, Sampling(8, 1.0, max_tokens=100), 1):
            future.cancel()
        await asyncio.sleep(0.02)
        return await sample(vllm_engine, Sampling(2, 1.0, max_tokens=10))

    assert len(run(cancel_then_sample())) == 2
    assert not vllm_engine._futures


def test_teacher_forced_logprobs(vllm_engine: Any, run: Run, reference: Callable[..., torch.Tensor]) -> None:
    sequences = [np.concatenate([PROMPT, as_token_ids(more)]) for more in ([2, 7, 9], [5] * 20)]
    for ids, ours in zip(sequences, run(vllm_engine.logprobs(sequences)), strict=True):
        assert len(ours) == len(ids) - 1
        assert (reference(ids, 1.0) - torch.tensor(ours)).abs().mean() < 0.01


def test_the_async_engine_samples_and_takes_weights(tiny_model: Path) -> None:
    """AsyncLLM samples, loads weights over gloo while requests are in flight, survives a broken push, and closes."""
    from transformers import AutoTokenizer

    async def everything() -> None:
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        named = set(SHARED_MEMORY.iterdir())
        spec = EngineSpec(str(tiny_model), tokenizer, RolloutConfig(enforce_eager=True), "bf16", 128)
        engine = AsyncVllmEngine(spec)
        assert not {path.name for path in set(SHARED_MEMORY.iterdir()) - named if path.name.startswith("sem.mp-")}
        try:
            first = await sample(engine, Sampling(3, 1.0, max_tokens=12))
            assert first == await sample(engine, Sampling(3, 1.0, max_tokens=12))
            assert engine.num_steps > 0
            before = await engine.logprobs([PROMPT])
            weights = {name: tensor * 1.1 for name, tensor in load_file(tiny_model / "model.safetensors").items()}
            with pytest.raises(TransportError, match="at tensor"):
                await push(engine, weights, breaks=True)
            assert engine.version == 0
            assert np.array_equal(await engine.logprobs([PROMPT]), before)
            received, sent = await push(engine, weights)
            # Nothing has changed yet, and a push that was not committed may be repeated.
            assert (engine.version, received) == (0, sent)
            assert (await push(engine, weights))[0] == sent
            steps = engine.num_steps
            futures = engine.submit(PROMPT, Sampling(8, 1.0, max_tokens=110), 1)
            while engine.num_steps < steps + 3:
                await asyncio.sleep(0)
            loaded = await commit_and_submit(engine, 7)
            completions = await asyncio.gather(*futures)
            assert (0, 7) in {(c.first_version, c.last_version) for c in completions}
            assert not np.array_equal(before, await engine.logprobs([PROMPT]))
            # The digest depends on the weights and not on the version.
            await push(engine, weights)
            again = await commit_and_submit(engine, 8)
            assert (loaded.version, again.version) == (7, 8)
            assert loaded.digest == again.digest
            name = next(iter(weights))
            await push(engine, {**weights, name: weights[name] + 1})
            assert (await commit_and_submit(engine, 9)).digest != loaded.digest
            # If the weights cannot be loaded, the engine serves nothing.
            await push(engine, {**weights, name: weights[name][:-1]})
            with pytest.raises(Exception, match=r"commit|call to|shape|size|failed"):
                await engine.commit(10)
            assert engine.version == -1
            (waiting,) = engine.submit(PROMPT, Sampling(1, 1.0, max_tokens=1), 1)
            await asyncio.wait([waiting], timeout=0.5)
            assert not waiting.done()
        finally:
            await engine.close()

    asyncio.run(everything())


async def commit_and_submit(engine: AsyncVllmEngine, version: int) -> LoadedWeights:
    """Commit with one request before and one during the load; they use the prefix cache of different loads."""
    salts: list[str] = []
    generate = engine._engine.generate

    def noting(prompt: Any, *args: Any) -> Any:
        salts.append(prompt["cache_salt"])
        return generate(prompt, *args)

    engine._engine.generate = noting  # type: ignore[method-assign]
    sampling = Sampling(1, 1.0, max_tokens=2)
    await sample(engine, sampling)
    loading = asyncio.create_task(engine.commit(version))
    while engine.version != -1:
        await asyncio.sleep(0)
    (future,) = engine.submit(PROMPT, sampling, 1)
    loaded = await loading
    assert not future.done()
    await engine.resume()
    assert engine.version == version
    assert (await future).first_version == version
    await sample(engine, sampling)
    before, during, after = salts
    assert before != during == after
    engine._engine.generate = generate  # type: ignore[method-assign]
    return loaded


async def push(engine: AsyncVllmEngine, weights: dict[str, torch.Tensor], breaks: bool = False) -> tuple[str, str]:
    """Connect and send once; returns the checksums received and sent. breaks: the sender leaves midway."""
    listener = listen("127.0.0.1")
    port = listener.getsockname()[1]
    config = TransferConfig(bucket_bytes=1 << 20, connect_s=10.0, transfer_s=5.0)
    metas = (TensorMeta.of(name, tensor.dtype, tensor.shape) for name, tensor in weights.items())
    plan = layout(metas, config.bucket_bytes)

    def sending() -> str:
        group = Group("127.0.0.1", port, 0, 2, 10, 5, listener=listener)
        connected.wait(10)
        if breaks:
            begin, end = plan.buckets[0]
            group.broadcast(torch.zeros(end - begin, dtype=torch.uint8)).wait()
            group.close()
            return ""
        return combined(send(group, plan, weights.items()))

    connected = threading.Event()
    sender = asyncio.get_running_loop().run_in_executor(None, sending)
    await engine.connect(JoinRequest("127.0.0.1", port, 1, 2, config))
    connected.set()
    try:
        return await engine.receive(plan.metas), await sender
    finally:
        await sender

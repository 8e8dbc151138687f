"""A reward model as a term, compared with direct calls of the same model, one sequence at a time."""

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from volley.rewards.config import RewardConfig
from volley.rewards.item import Item, Outcome
from volley.rewards.reward_model import RewardModel
from volley.rewards.scoring.preflight import check_rewards
from volley.rewards.scoring.scorer import Scorer
from volley.rollout.errors import RewardError
from volley.rollout.types import Completion, Prompt, Score, as_token_ids

CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
LENGTHS = (1, 30, 7, 2, 55, 8, 21, 3, 3, 40)


def save(directory: Path, tokenizer: Any, num_labels: int = 1, pad_id: int | None = 0, vocab_size: int = 0) -> Path:
    """A small Llama with random weights and a classification head, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size or len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        num_labels=num_labels,
        pad_token_id=pad_id,
    )
    LlamaForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=[0, None], ids=["pad", "no-pad"])
def model(request: pytest.FixtureRequest, char_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a padding token in its configuration, and without."""
    return save(tmp_path_factory.mktemp("reward-model"), char_tokenizer, pad_id=request.param)


def by_hand(model: Path, text: str) -> float:
    """The head applied to the hidden state of the last token, without padding."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = AutoModelForSequenceClassification.from_pretrained(model)
    token_ids = AutoTokenizer.from_pretrained(model)(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        hidden = network.model(token_ids).last_hidden_state[0, -1]
        return float(hidden @ network.score.weight[0])


def item(response: str, prompt: str = "7+11=", **fields: Any) -> Item:
    return Item(prompt, response, "18", 3, False, {}, **fields)


def scored(
    model: Path, groups: Sequence[Sequence[Item]], **options: Any
) -> tuple[list[list[Outcome]], dict[str, float]]:
    """Outcomes of concurrent groups, and the metrics."""

    async def main() -> tuple[list[list[Outcome]], dict[str, float]]:
        term = RewardModel(RewardConfig("reward_model", options={"model": str(model), **options}))
        await term.check(4)
        await term.start()
        try:
            return await asyncio.gather(*map(term.score_group, groups)), term.metrics()
        finally:
            await term.close()

    return asyncio.run(main())


def test_batched_scores_equal_single_scores(model: Path) -> None:
    texts = ["x" * (n - 1) + "<y z!"[n % 5] for n in LENGTHS]
    groups = [[item(text) for text in texts[:4]], [item(text) for text in texts[4:5]], [item(t) for t in texts[5:]]]
    results, metrics = scored(model, groups, batch_size=4)
    assert [len(group) for group in results] == [4, 1, 5]
    values = [outcome.value for group in results for outcome in group]
    assert values == pytest.approx([by_hand(model, "7+11=" + text) for text in texts], abs=1e-5)
    assert len({round(value, 4) for value in values}) > 5, "the model tells texts apart"
    assert metrics == {"scored": 10.0, "truncated": 0.0, "batch_mean": 10 / 3}


def test_an_encoder_does_not_see_the_padding(char_tokenizer: Any, tmp_path: Path) -> None:
    """With bidirectional attention only the mask excludes the padding."""
    from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(char_tokenizer), num_labels=1, pad_token_id=0, initializer_range=0.5, **shape)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    char_tokenizer.save_pretrained(tmp_path)
    texts = ["x" * (n - 1) + "<y z!"[n % 5] for n in LENGTHS]
    (results,), _ = scored(tmp_path, [[item(text) for text in texts]])
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for text, outcome in zip(texts, results, strict=True):
        token_ids = char_tokenizer("7+11=" + text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            assert outcome.value == pytest.approx(float(network(token_ids).logits[0, 0]), abs=1e-5)


def test_responses_that_end_with_the_padding_token(model: Path) -> None:
    """If the configuration names a padding token, the model decides; otherwise every token counts."""
    texts = ["ab", "abc<pad>", "<eos>", "a<pad><pad>"]
    results, _ = scored(model, [[item(text) for text in texts]])
    one_by_one = [scored(model, [[item(text)]])[0][0][0].value for text in texts]
    assert [outcome.value for outcome in results[0]] == pytest.approx(one_by_one, abs=1e-5)


def test_long_texts_lose_their_beginning_and_are_counted(model: Path) -> None:
    (results, _), metrics = scored(model, [[item("abc" * 40)], [item("c")]], max_tokens=20)
    assert results[0].value == pytest.approx(by_hand(model, ("abc" * 40)[-20:]), abs=1e-5)
    assert (metrics["scored"], metrics["truncated"]) == (2.0, 1.0)


def test_chats_go_through_the_models_own_template(char_tokenizer: Any, tmp_path: Path) -> None:
    import copy

    tokenizer = copy.deepcopy(char_tokenizer)
    tokenizer.chat_template = CHAT
    model = save(tmp_path, tokenizer)
    messages = ({"role": "user", "content": "7+11?"},)
    ((chat, plain),), _ = scored(model, [[item("18", "[INST]7+11?[/INST]", messages=messages), item("18", "7+11=")]])
    assert chat.value == pytest.approx(by_hand(model, "user: 7+11?\nassistant: 18\n"), abs=1e-5)
    assert plain.value == pytest.approx(by_hand(model, "7+11=18"), abs=1e-5)


def test_a_failing_chat_template_affects_only_its_own_item(char_tokenizer: Any, tmp_path: Path) -> None:
    import copy

    tokenizer = copy.deepcopy(char_tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    model = save(tmp_path, tokenizer)
    messages = ({"role": "system", "content": "x"}, {"role": "user", "content": "y"})
    ((refused, good),), _ = scored(model, [[item("a", messages=messages), item("a")]])
    assert "the text cannot be encoded" in refused.error
    assert "no system role" in refused.error
    assert math.isfinite(good.value)


def test_an_output_of_nan_makes_responses_unscorable(char_tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = save(tmp_path, char_tokenizer)
    network = AutoModelForSequenceClassification.from_pretrained(model)
    with torch.no_grad():
        network.model.embed_tokens.weight[char_tokenizer.convert_tokens_to_ids("#")] = math.nan
    network.save_pretrained(model)
    ((bad, good),), _ = scored(model, [[item("a#"), item("ab")]])
    assert math.isnan(bad.value)
    assert bad.error == "reward 'reward_model': the model's output is nan"
    assert math.isfinite(good.value)


def test_bf16_is_close(model: Path) -> None:
    (results,), _ = scored(model, [[item("x" * n) for n in LENGTHS]], dtype="bf16")
    for n, outcome in zip(LENGTHS, results, strict=True):
        assert outcome.value == pytest.approx(by_hand(model, "7+11=" + "x" * n), abs=0.05)


def test_groups_that_arrive_while_it_is_busy_are_batched(model: Path) -> None:
    async def main() -> dict[str, float]:
        term = RewardModel(RewardConfig("reward_model", options={"model": str(model), "batch_size": 64}))
        await term.start()
        first = asyncio.ensure_future(term.score_group([item("x" * 50)]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # it is in the thread now
        others = [asyncio.ensure_future(term.score_group([item("a"), item("b")])) for _ in range(5)]
        await asyncio.gather(first, *others)
        await term.close()
        return term.metrics()

    metrics = asyncio.run(main())
    assert metrics["scored"] == 11
    assert metrics["batch_mean"] >= 11 / 2


def test_a_cancelled_call_does_not_affect_the_others(model: Path) -> None:
    async def main() -> list[Outcome]:
        term = RewardModel(RewardConfig("reward_model", options={"model": str(model)}))
        await term.start()
        left = asyncio.ensure_future(term.score_group([item("a")]))
        kept = asyncio.ensure_future(term.score_group([item("b")]))
        await asyncio.sleep(0)
        left.cancel()
        results = await kept
        results += await term.score_group([item("c")])
        await term.close()
        return results

    assert all(math.isfinite(outcome.value) for outcome in asyncio.run(main()))


def test_a_model_that_fails_ends_the_run(char_tokenizer: Any, tmp_path: Path) -> None:
    """Here the vocabulary of the model is smaller than that of the tokenizer."""
    model = save(tmp_path, char_tokenizer, vocab_size=10)

    async def main() -> None:
        term = RewardModel(RewardConfig("reward_model", options={"model": str(model)}))
        await term.start()
        try:
            await asyncio.gather(term.score_group([item("a")]), term.score_group([item("b")]))
        finally:
            await term.close()

    with pytest.raises(RewardError, match=r"failed on cpu \(IndexError: .*if memory ran out, lower batch_size"):
        asyncio.run(main())


def test_together_with_another_term(model: Path) -> None:
    async def main() -> tuple[tuple[Score, ...], dict[str, float]]:
        terms = [RewardConfig("math"), RewardConfig("reward_model", weight=0.1, options={"model": str(model)})]
        async with Scorer(terms) as scorer:
            prompt = Prompt(0, 0, "7+11=", as_token_ids((1, 2)), "18", {})
            completions = [
                Completion.single((1,), (0.0,), text, "stop", 0, 0) for text in (r"\boxed{18}", r"\boxed{19}")
            ]
            plain = [await scorer.score(prompt, completion) for completion in completions]
            return await scorer.score_group(prompt, completions, plain), scorer.metrics()

    scores, metrics = asyncio.run(main())
    for score, text, right in zip(scores, (r"\boxed{18}", r"\boxed{19}"), (1.0, 0.0), strict=True):
        value = by_hand(model, "7+11=" + text)
        assert score.terms == pytest.approx({"math": right, "reward_model": value}, abs=1e-5)
        assert score.reward == pytest.approx(right + 0.1 * value, abs=1e-5)
        assert score.accuracy == right
    assert metrics["reward_model/scored"] == 2.0


def refused(model: Path | str, **options: Any) -> str:
    with pytest.raises(RewardError) as raised:
        check_rewards([RewardConfig("reward_model", options={"model": str(model), **options})], {"prompt"}, 8)
    return str(raised.value)


def test_other_models_are_refused(char_tokenizer: Any, tiny_model: Path, tmp_path: Path) -> None:
    two = save(tmp_path / "two", char_tokenizer, num_labels=2)
    assert "has 2 outputs; a reward model must have one." in refused(two)
    assert "is a LlamaForCausalLM; it must be a sequence-classification model" in refused(tiny_model)
    assert "is not a model directory or hub name that can be loaded" in refused(tmp_path / "nowhere")
    assert "no option 'batchsize'; did you mean 'batch_size'?" in refused(tmp_path, batchsize=4)
    assert "dtype is 'fp16'; it must be one of fp32, bf16." in refused(tmp_path, dtype="fp16")
    assert "batch_size is 0; it must be at least 1." in refused(tmp_path, batch_size=0)


def test_a_head_without_weights_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """A base model whose configuration claims to classify would get a random head."""
    import shutil

    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "reward"}}
    (model / "config.json").write_text(json.dumps(config))

    async def main() -> None:
        async with Scorer([RewardConfig("reward_model", options={"model": str(model)})]):
            pass

    with pytest.raises(RewardError, match=r"has no weights for score\.weight"):
        asyncio.run(main())


def test_a_missing_device_is_named(model: Path) -> None:
    async def main() -> None:
        async with Scorer([RewardConfig("reward_model", options={"model": str(model), "device": "cuda:99"})]):
            pass

    with pytest.raises(RewardError, match="cannot be loaded"):
        asyncio.run(main())

"""Every recipe in `recipes/` passes a dry run. Models and data sets of the hub are replaced by local ones with the same
columns, the judge's endpoint by a server in this process; everything else is as shipped."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from volley.cluster.cli.demo import make_model, make_tokenizer, write_problems
from volley.cluster.cli.main import main
from volley.rewards.judge.fake_endpoint import MODEL, Endpoint, Reply

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, gsm8k: Path) -> dict[str, str]:
    """What stands for each name of the hub and each file of the demo: name -> local path."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    root = tmp_path_factory.mktemp("hub")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    make_model(root / "model", seed=0, tokenizer=tokenizer, max_position_embeddings=8192)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, **shape)
    LlamaForSequenceClassification(config).save_pretrained(root / "reward-model")
    tokenizer.save_pretrained(root / "reward-model")
    write_rows(root / "pairs.jsonl", [{"prompt": f"{a}+1=?", "chosen": "yes", "rejected": "no"} for a in range(300)])
    write_rows(root / "labels.jsonl", [{"prompt": f"{a}+1=?", "completion": "a", "label": a > 9} for a in range(300)])
    write_rows(root / "prompts.jsonl", [{"prompt": f"{a}+1=?"} for a in range(300)])
    write_problems(root / "demo", seed=0)
    return {
        "HuggingFaceH4/ultrafeedback_binarized:train_prefs": str(root / "pairs.jsonl"),
        "trl-lib/kto-mix-14k:train": str(root / "labels.jsonl"),
        "HuggingFaceH4/ultrachat_200k:train_sft": str(root / "prompts.jsonl"),
        "openai/gsm8k/main:train": str(gsm8k / "train.jsonl"),
        "openai/gsm8k/main:test": str(gsm8k / "test.jsonl"),
        "Skywork/Skywork-Reward-V2-Qwen3-0.6B": str(root / "reward-model"),
        "cuda:0": "cpu",
        "runs/demo/data": str(root / "demo"),
        "runs/demo-warm-up/model": str(root / "model"),
        "runs/demo/start": str(root / "model"),
        "recipes/constitution.txt": str(ROOT / "recipes" / "constitution.txt"),
        "Qwen/Qwen2.5-7B-Instruct": MODEL,
        "Qwen/Qwen2.5-0.5B-Instruct": str(root / "model"),
        "Qwen/Qwen2.5-0.5B": str(root / "model"),
    }


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    """The address of an endpoint that answers as a judge; it runs in a thread."""
    loop, started, url = asyncio.new_event_loop(), threading.Event(), []

    async def serve() -> None:
        async with Endpoint(lambda request: Reply("Verdict: A")) as endpoint:
            url.append(endpoint.url)
            started.set()
            await stop.wait()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(30)
    yield url[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_is_valid(
    path: Path,
    hub: dict[str, str],
    judge: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = path.read_text().replace("http://localhost:8000/v1", judge)
    for name, local in hub.items():
        text = text.replace(name, local)
    monkeypatch.chdir(tmp_path)
    Path(path.name).write_text(text)
    code = main(["train", path.name, "--dry-run"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    num_stages = max(1, text.count("  - name: ") if "stages:" in text else 0)
    assert captured.out.count("Recipe is valid (dry run, nothing was started).") == num_stages
    assert not Path("runs").exists(), "the dry run wrote files"

"""`volley demo`: train a tiny model from scratch to add numbers, in minutes on a laptop.

The demo creates a small Llama with a character tokenizer and addition problems. SFT on worked examples, some of them
deliberately wrong, teaches the answer format. GRPO with the math and format rewards then teaches correct sums. Both
stages use the public recipes and commands.
"""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from volley.cluster.recipe.config import RECIPES, RUNS

HELD_OUT_SHARE = 0.1
WRONG_SHARE = 0.3
"""Share of the worked examples with a wrong sum."""
WORDS = ("<pad>", "<eos>", "<think>", "</think>", "<answer>", "</answer>")


def demo() -> int:
    """Run the demo in runs/demo and runs/demo-warm-up. Returns an exit code."""
    run, warm_up = RUNS / "demo", RUNS / "demo-warm-up"
    for directory in (run, warm_up):
        shutil.rmtree(directory, ignore_errors=True)
    print("demo: creating a model with 1.8 M parameters, a tokenizer, and all additions of two-digit numbers")
    write_problems(run / "data", seed=0)
    make_model(run / "start", seed=0)
    overrides = fast_dtype()
    if overrides:
        print("demo: this CPU has no bf16 instructions and bf16 would take an hour, so training uses fp32")
    for title, recipe in (("warm-up: SFT", "demo-warm-up.yaml"), ("training: GRPO", "demo.yaml")):
        print(f"demo: {title} ({RECIPES / recipe})", flush=True)
        code = subprocess.call([sys.executable, "-P", "-m", "volley", "train", str(RECIPES / recipe), *overrides])
        if code:
            return code
    evaluations = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speed = sum(row["samples"] for row in rows) / rows[-1]["wall_s"]
    first, last = evaluations[0]["pass@1"], evaluations[-1]["pass@1"]
    print(f"demo: pass@1 {first:.2f} -> {last:.2f}, {speed:.0f} samples/s, report {run / 'report.html'}")
    return 0


def fast_dtype() -> list[str]:
    """Overrides of the recipes' bf16 for CPUs on which it is slow."""
    from volley.learner.compute.model import is_slow_in_bf16

    return ["learner.dtype=fp32"] if is_slow_in_bf16() else []


def write_problems(directory: Path, seed: int) -> None:
    """All sums of two two-digit numbers: train.jsonl, test.jsonl (held out at random) and warm-up.jsonl."""
    rng = random.Random(seed)
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    rng.shuffle(pairs)
    num_held_out = round(len(pairs) * HELD_OUT_SHARE)
    directory.mkdir(parents=True, exist_ok=True)
    _write_rows(directory / "test.jsonl", [_problem(a, b) for a, b in pairs[:num_held_out]])
    _write_rows(directory / "train.jsonl", [_problem(a, b) for a, b in pairs[num_held_out:]])
    worked = [
        {"prompt": f"{a}+{b}=?", "completion": worked_answer(a, b, rng if rng.random() < WRONG_SHARE else None)}
        for a, b in pairs[num_held_out:]
    ]
    _write_rows(directory / "warm-up.jsonl", worked)


def worked_answer(a: int, b: int, spoil: random.Random | None = None) -> str:
    """Add column by column: `<think>7+8=15 4+3+1=8</think><answer>85</answer>`.

    spoil: a random generator to make one column wrong.
    """
    units = a % 10 + b % 10
    if spoil is not None and spoil.random() < 0.5:
        units = spoil.choice([n for n in range(19) if n != units])
        spoil = None
    carry = units // 10
    tens = a // 10 + b // 10 + carry
    if spoil is not None:
        tens = spoil.choice([n for n in range(1, 20) if n != tens])
    carried = "+1" if carry else ""
    trace = f"{a % 10}+{b % 10}={units} {a // 10}+{b // 10}{carried}={tens}"
    return f"<think>{trace}</think><answer>{tens}{units % 10}</answer>"


def make_tokenizer(characters: str = "0123456789+=? ") -> Any:
    """A tokenizer with one token per character, one per tag, and an end token."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*WORDS, *characters]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in WORDS[2:]])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_model(directory: Path, seed: int, tokenizer: Any = None, **overrides: Any) -> None:
    """Write a Llama with random weights and its tokenizer as a Hugging Face checkpoint."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**shape, **overrides},
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _problem(a: int, b: int) -> dict[str, str]:
    return {"prompt": f"{a}+{b}=?", "answer": str(a + b)}


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

"""Preference data made of real solutions, correct against incorrect ones to the same question; and its accuracy.

Source: gsm8k/model_solutions.jsonl, four models' solutions to each question, each with `is_correct`. Questions are held
out whole, so that no held-out pair shares its prompt with the training data.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from volley.cluster.cli.demo import make_model

SOLVERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
FOLDS = 3
SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 2048}
VOCABULARY = 768
KINDS = ("pairs", "labels", "shown")

Row = dict[str, Any]


def write_solutions(source: Path, directory: Path, fold: int, max_characters: int) -> dict[str, int]:
    """`KIND-SIDE.jsonl` for each of `KINDS` and train and test, from solutions that have with their question less than
    `max_characters`; and `start`, a random Llama of 0.4 M parameters with a byte-pair encoding of the train side. fold:
    which third of the questions is the test side. Returns the number of rows by file."""
    sides: dict[str, dict[str, list[Row]]] = {side: {kind: [] for kind in KINDS} for side in ("train", "test")}
    for number, line in enumerate(source.read_text().splitlines()):
        question = json.loads(line)
        rows = sides["test" if number % FOLDS == fold else "train"]
        prompt = question["question"] + "\n"
        room = max_characters - len(prompt)
        solutions = [question[solver] for solver in SOLVERS if len(question[solver]["solution"]) < room]
        right = list(dict.fromkeys(each["solution"] for each in solutions if each["is_correct"]))
        wrong = list(dict.fromkeys(each["solution"] for each in solutions if not each["is_correct"]))
        rows["pairs"] += [{"prompt": prompt, "chosen": a, "rejected": b} for a, b in itertools.product(right, wrong)]
        rows["labels"] += [{"prompt": prompt, "completion": each, "label": True} for each in right]
        rows["labels"] += [{"prompt": prompt, "completion": each, "label": False} for each in wrong]
        rows["shown"] += [{"prompt": prompt, "completion": each} for each in right]
    files = {f"{kind}-{side}": rows for side, kinds in sides.items() for kind, rows in kinds.items()}
    for name, rows in files.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [row["prompt"] + row["completion"] for row in sides["train"]["labels"]]
    make_model(directory / "start", 0, _byte_pairs(texts), **SHAPE)
    return {name: len(rows) for name, rows in files.items()}


def _byte_pairs(texts: Sequence[str]) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=["<pad>", "<eos>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, pad_token="<pad>", eos_token="<eos>")


def told_apart(model: Path, start: Path, pairs: Sequence[Row]) -> dict[str, list[float]]:
    """Of each pair, 1 if its chosen side is ahead of the rejected one, 0.5 for a tie: by `log_ratio`, log pi(y) - log
    pi_start(y), the implicit reward of DPO, IPO and KTO; `per_token`, log pi(y) / |y|, that of SimPO, which also orders
    as ORPO's odds do. Computed with transformers alone."""
    ours, theirs = logprobs(model, pairs), logprobs(start, pairs)
    ratios = [[a - b for (a, _), (b, _) in zip(*sides, strict=True)] for sides in zip(ours, theirs, strict=True)]
    means = [[total / count for total, count in sides] for sides in ours]
    return {
        name: [(chosen > rejected) + (chosen == rejected) / 2 for chosen, rejected in values]
        for name, values in {"log_ratio": ratios, "per_token": means}.items()
    }


def logprobs(model_dir: Path, pairs: Sequence[Row]) -> list[list[tuple[float, int]]]:
    """Of each pair, chosen first: the completion's log-prob, end token included, and its number of tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()

    def logprob(prompt: str, completion: str) -> tuple[float, int]:
        given = tokenizer(prompt)["input_ids"]
        said = [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits_TV = model(torch.tensor([given + said])).logits[0, len(given) - 1 : -1]
        return -float(torch.nn.functional.cross_entropy(logits_TV, torch.tensor(said), reduction="sum")), len(said)

    return [[logprob(pair["prompt"], pair[side]) for side in ("chosen", "rejected")] for pair in pairs]

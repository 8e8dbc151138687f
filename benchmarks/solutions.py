"""Preference data from real solutions, and the accuracy of a model on held-out pairs.

A pair is a correct and an incorrect solution to the same question. The source is gsm8k/model_solutions.jsonl: solutions
of four models to each question, each with `is_correct`. The split is by question, so no held-out pair shares its prompt
with the training data.
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
    """Write the data sets and the initial model into a directory. Return the number of rows by file.

    The files are `KIND-SIDE.jsonl` for each of `KINDS` and the sides train and test. The model `start` is a random
    Llama with 0.4 M parameters and a byte-pair encoding of the train side.

    Args:
        source: gsm8k/model_solutions.jsonl.
        directory: where to write.
        fold: which third of the questions is the test side.
        max_characters: question and solution together must be shorter.
    """
    sides: dict[str, dict[str, list[Row]]] = {side: {kind: [] for kind in KINDS} for side in ("train", "test")}
    for number, line in enumerate(source.read_text().splitlines()):
        question = json.loads(line)
        rows = sides["test" if number % FOLDS == fold else "train"]
        prompt = question["question"] + "\n"
        max_length = max_characters - len(prompt)
        solutions = [question[solver] for solver in SOLVERS if len(question[solver]["solution"]) < max_length]
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


def pair_accuracy(model: Path, start: Path, pairs: Sequence[Row]) -> dict[str, list[float]]:
    """Return for each pair 1 if the model prefers the chosen side, 0 if it prefers the rejected one, 0.5 for a tie.

    Two implicit rewards decide what the model prefers:

    - `log_ratio`: log pi(y) - log pi_start(y), the implicit reward of DPO, IPO and KTO
    - `per_token`: log pi(y) / |y|, the implicit reward of SimPO; ORPO's odds give the same order

    The log-probs are computed with transformers alone.
    """
    trained, initial = logprobs(model, pairs), logprobs(start, pairs)
    ratios = [[a - b for (a, _), (b, _) in zip(*sides, strict=True)] for sides in zip(trained, initial, strict=True)]
    means = [[total / count for total, count in sides] for sides in trained]
    return {
        name: [(chosen > rejected) + (chosen == rejected) / 2 for chosen, rejected in values]
        for name, values in {"log_ratio": ratios, "per_token": means}.items()
    }


def logprobs(model_dir: Path, pairs: Sequence[Row]) -> list[list[tuple[float, int]]]:
    """Return for each pair, chosen side first, the log-prob of the completion and its number of tokens.

    Both include the end token.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()

    def logprob(prompt: str, completion: str) -> tuple[float, int]:
        prompt_ids = tokenizer(prompt)["input_ids"]
        completion_ids = [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
        targets_T = torch.tensor(completion_ids)
        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt_ids + completion_ids])).logits[0, len(prompt_ids) - 1 : -1]
        total = -float(torch.nn.functional.cross_entropy(logits_TV, targets_T, reduction="sum"))
        return total, len(completion_ids)

    return [[logprob(pair["prompt"], pair[side]) for side in ("chosen", "rejected")] for pair in pairs]

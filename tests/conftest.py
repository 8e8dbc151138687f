"""Fixtures that several packages' tests share."""

import os
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def char_tokenizer() -> Any:
    """One token per character (printable ASCII and newline; anything else is <unk>), `<eos>`, no chat template. Shared:
    copy it before changing it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", "\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """The directory of the GSM8K files."""
    root = os.environ.get("VOLLEY_TEST_DATA")
    if not root:
        pytest.skip("VOLLEY_TEST_DATA is not set; it names a directory with gsm8k/train.jsonl and test.jsonl")
    return Path(root) / "gsm8k"

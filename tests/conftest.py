"""Fixtures shared by the tests of several packages."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

# Must be set before torch is imported: idle threads sleep, and nothing is downloaded from the hub.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="session")
def char_tokenizer() -> Any:
    """A tokenizer with one token per character (printable ASCII and newline; others are <unk>) and no chat template.

    It is shared by all tests: copy it before changing it.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", "\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """The directory with the part of GSM8K that is in the repository; see its README."""
    return Path(__file__).parent / "data" / "gsm8k"


@pytest.fixture(scope="session")
def gsm8k_full() -> Path:
    """The directory with the complete GSM8K files."""
    root = os.environ.get("VOLLEY_TEST_DATA")
    if not root:
        pytest.skip("needs the complete GSM8K files: VOLLEY_TEST_DATA is the directory that contains gsm8k/")
    return Path(root) / "gsm8k"


@pytest.fixture(params=["part", "full"])
def gsm8k_each(request: pytest.FixtureRequest) -> Path:
    """First the part of GSM8K in the repository, then the complete files."""
    directory: Path = request.getfixturevalue("gsm8k" if request.param == "part" else "gsm8k_full")
    return directory


@pytest.fixture(scope="session")
def run() -> Iterator[Run]:
    """Run a coroutine on the event loop of the session, which the shared engine also uses."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 1.8 M parameters with random weights and the demo's tokenizer."""
    from volley.cluster.cli.demo import make_model

    directory = tmp_path_factory.mktemp("tiny-model")
    make_model(directory, seed=0)
    return directory


@pytest.fixture(scope="session")
def vllm_engine(tiny_model: Path, run: Run) -> Iterator[Any]:
    """The real vLLM engine of the session (bf16, in this process)."""
    from transformers import AutoTokenizer

    from volley.rollout.config import RolloutConfig
    from volley.rollout.engines.vllm import EngineSpec, VllmEngine

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    engine = VllmEngine(EngineSpec(str(tiny_model), tokenizer, RolloutConfig(), "bf16", max_model_len=128))
    yield engine
    run(engine.close())

"""Facts about a model, read from its directory without loading it. Fast enough for a check before every run.

Reads `config.json`, the headers of the safetensors files, and the tokenizer's vocabulary. Never unpickles, and never
runs the model's own code.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from volley.rollout.errors import ModelError

MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the files say about a model."""

    path: Path
    architecture: str
    num_parameters: int
    """Elements in the weight files; tied weights count once."""
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_length: int
    """Upper limit of prompt plus completion, in tokens, from the model's positions."""


def resolve_model(name: str) -> Path:
    """The absolute local directory of `name`: a directory, or the hub's snapshot of that name (downloaded once)."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path.absolute()
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ModelError(f"model: the directory '{name}' does not exist; give a model directory or a hub name.")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model: '{name}' is neither a local directory nor a model that can be downloaded from the hub ({reason}); "
            "check the name, or give the path of a directory."
        ) from None


def inspect_model(path: Path, trust_remote_code: bool = False) -> ModelFacts:
    """Check the files of a causal language model. Raises `ModelError`, which says what is wrong and how to fix it."""
    config = _read_config(path)
    if config.get("auto_map") and not trust_remote_code:
        raise ModelError(
            f"model: '{path}' runs its own code (auto_map in config.json); set trust_remote_code: true in the recipe "
            "if you have read that code and trust it."
        )
    num_parameters = _count_parameters(path)
    config = config.get("text_config", config)
    try:
        hidden_size, num_heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        facts = ModelFacts(
            path=path,
            architecture=str((config.get("architectures") or [config.get("model_type", "unknown")])[0]),
            num_parameters=num_parameters,
            vocab_size=int(config["vocab_size"]),
            hidden_size=hidden_size,
            num_layers=int(config["num_hidden_layers"]),
            num_heads=num_heads,
            num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
            head_dim=int(config.get("head_dim") or hidden_size // num_heads),
            max_length=int(config.get("max_position_embeddings") or 1 << 30),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(
            f"model: '{path}/config.json' does not describe a decoder-only language model (missing or wrong: {error}); "
            "give a causal language model."
        ) from None
    _check_tokenizer(path, facts.vocab_size)
    return facts


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise ModelError(f"model: '{path}' has no config.json, so it is not a model directory; check the path.")
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"model: '{file}' is not readable JSON ({error}); copy the model again.") from None
    if not isinstance(config, dict):
        raise ModelError(f"model: '{file}' is not a JSON object; copy the model again.")
    return config


def weights_fingerprint(facts: ModelFacts) -> str:
    """A 128-bit hash of the model's weights and configuration."""
    digest = xxhash.xxh3_128((facts.path / "config.json").read_bytes())
    for file in sorted(facts.path.glob("*.safetensors")):
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def _count_parameters(path: Path) -> int:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(
                f"model: '{index}' is not a readable weight index ({error}); copy the model again."
            ) from None
        files = [path / name for name in names]
    else:
        files = [path / "model.safetensors"]
    for file in files:
        if not file.is_file():
            pickled = sorted(p.name for p in path.glob("*.bin"))
            if pickled:
                raise ModelError(
                    f"model: '{path}' has only pickled weights ({pickled[0]}), which can run code when loaded; convert "
                    "them to safetensors first (load with transformers, then save_pretrained)."
                )
            raise ModelError(f"model: the weight file '{file}' is missing; copy the model again, completely.")
    return sum(_parameters_of(file) for file in files)


def _parameters_of(file: Path) -> int:
    """Elements in one safetensors file, after a check that the file has the length given in its header."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise ModelError(f"model: '{file}' is truncated or not a safetensors file; copy it again.")
        try:
            header = json.loads(stream.read(length))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            end = max((entry["data_offsets"][1] for entry in tensors), default=0)
            count = sum(math.prod(entry["shape"]) for entry in tensors)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise ModelError(f"model: the header of '{file}' is not readable; copy the file again.") from None
    if 8 + length + end != size:
        raise ModelError(
            f"model: '{file}' is truncated: its header promises {8 + length + end:,} bytes, the file has {size:,}; "
            "copy it again."
        )
    return count


def _check_tokenizer(path: Path, vocab_size: int) -> None:
    file = path / "tokenizer.json"
    if not file.is_file():
        if any((path / name).is_file() for name in ("tokenizer_config.json", "tokenizer.model", "vocab.json")):
            return
        raise ModelError(
            f"model: '{path}' has no tokenizer (tokenizer.json); save the tokenizer in the model's directory."
        )
    try:
        tokenizer = json.loads(file.read_text())
        vocabulary = tokenizer["model"]["vocab"]
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
        ids += [token["id"] for token in tokenizer.get("added_tokens", [])]
        largest = max(ids)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"model: '{file}' is not a readable tokenizer ({error}); copy it again.") from None
    if largest >= vocab_size:
        raise ModelError(
            f"model: the tokenizer of '{path}' has token ids up to {largest}, but the model only has {vocab_size} "
            "embeddings; use the tokenizer that belongs to the model, or resize the embeddings."
        )

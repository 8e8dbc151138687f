"""Loading the policy, and its frozen copy."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from volley.learner.compute.model import load_policy
from volley.learner.compute.reference import FrozenCopy
from volley.learner.config import LearnerConfig
from volley.rollout.errors import CheckpointError

SHAPE = {"vocab_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 64}
MODELS: dict[str, tuple[type[Any], Any]] = {
    "float attribute": (LlamaForCausalLM, LlamaConfig(**SHAPE, attention_dropout=0.5)),
    "modules": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=32, n_layer=2, n_head=2, n_embd=64, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5),
    ),
}


@pytest.fixture(params=MODELS)
def model_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    kind, config = MODELS[request.param]
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def logprobs(model: torch.nn.Module, num_tokens: int) -> torch.Tensor:
    ids = torch.arange(num_tokens)[None, :] % 32
    places = torch.arange(num_tokens - 1)
    found: torch.Tensor = model(ids, None, places, ids[0, 1:], 1.0)[0]
    return found


@pytest.mark.parametrize("num_tokens", [20, 300], ids=["eager attention", "fused attention"])
def test_a_training_model_has_no_dropout(model_dir: Path, num_tokens: int) -> None:
    model = load_policy(model_dir, LearnerConfig(dtype="fp32"))
    assert model.training
    in_training = logprobs(model, num_tokens)
    assert torch.equal(in_training, logprobs(model, num_tokens))
    assert torch.allclose(in_training, logprobs(model.eval(), num_tokens), atol=1e-6)


def test_the_exported_configuration_keeps_its_dropout(model_dir: Path) -> None:
    config = load_policy(model_dir, LearnerConfig(dtype="fp32")).causal_lm.config
    assert 0.5 in (getattr(config, "attention_dropout", None), getattr(config, "resid_pdrop", None))


def test_a_frozen_copy_restores_exactly_its_own_weights(model_dir: Path) -> None:
    model = load_policy(model_dir, LearnerConfig(dtype="fp32"))
    copy = FrozenCopy(model, 1.0)
    saved = {name: tensor.clone() + 1 for name, tensor in copy.state().items()}
    copy.restore(saved)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in copy.state().items())
    saved.pop(next(iter(saved)))
    with pytest.raises(CheckpointError, match="other weights than the model of the recipe"):
        copy.restore(saved)

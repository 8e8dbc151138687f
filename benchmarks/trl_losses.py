"""Every loss against TRL 1.16: value and gradient, on the same weights and the same tokens.

    .venv/bin/python benchmarks/trl_losses.py

Real TRL trainers around a tiny model (float32, as TRL's fused head computes in it) on additions; one batch of each
trainer's own data loader, and for the online methods of its own generation, rewards and advantages. The reference, the
policy that sampled and the policy that learns differ by noise on the weights, so that no ratio is 1. TRL's loss is what
its `compute_loss` returns. Ours reads the same tokens: log-probs by a log_softmax of the same model, advantages by
`Loss.advantages` from the rewards of the batch's completions.

Where conventions differ, one row shows by how much, and another the setting in which both must agree to 1e-5: in value
(over TRL's, or over 0.01 where centred advantages cancel to less) and in the gradient of all parameters (norm of the
difference over the norm). Exits with 1 where a row that must agree does not, where one that should differ does not, or
where clipping takes none or all of the tokens.

Leaves out: REINFORCE++, which TRL does not have; PPO, whose trainer computes its loss within its own training loop and
not in `compute_loss`, with a KL in the reward, a value model of its own and clipped values, none of which ours has
(according to its documentation up to 1.9; that of 1.16 was not checked); guards against stale samples, which TRL
computes for vLLM only; lower precisions.
"""

import importlib.util
import logging
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl_harness import Bench, Comparison, compare, evaluate, logprobs, move, sequence_micro, show
from versus_trl import ENVIRONMENT, ROOT, TRL_VENV, ensure_trl

from volley.cluster.cli.demo import worked_answer
from volley.learner.losses import LOSSES
from volley.learner.losses.common import Loss, MicroBatch
from volley.learner.signals.advantages import SampledTensors
from volley.learner.signals.batch import SignalTensors
from volley.learner.signals.labels import LabelTensors
from volley.learner.signals.pairs import PairTensors

GROUP, PROMPTS, MAX_TOKENS, BETA = 4, 4, 12, 0.04


def reward_of(ids: Sequence[int]) -> float:
    """Any function of the tokens that tells completions apart."""
    return sum(ids) % 7 / 7


def rewards(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [reward_of(ids) for ids in completion_ids]


def advantages_of(loss: Loss, batch: dict[str, Tensor]) -> Tensor:
    """From the rewards of the batch's completions, whose groups TRL has shuffled."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for n, ids in enumerate(batch["prompt_ids"].tolist()):
        groups.setdefault(tuple(ids), []).append(n)
    found = torch.zeros(len(batch["prompt_ids"]))
    for places in groups.values():
        assert len(places) == GROUP
        ids_of = [batch["completion_ids"][n][batch["completion_mask"][n].bool()].tolist() for n in places]
        found[places] = torch.tensor(loss.advantages([reward_of(ids) for ids in ids_of]))
    return found


def online(bench: Bench, name: str, options: dict[str, Any], loss: Loss, note: str, **how: Any) -> Comparison:
    """A policy loss. how: agrees; is_fresh: the policy is the one that sampled, and the gradients are compared after
    undoing the means, over sequences there and over tokens here."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    is_rloo, is_fresh = name == "rloo", how.get("is_fresh", False)
    kind, config = (RLOOTrainer, RLOOConfig) if is_rloo else (GRPOTrainer, GRPOConfig)
    shared = bench.options(
        per_device_train_batch_size=GROUP * PROMPTS,
        num_generations=GROUP,
        # Two updates per batch, or TRL takes the policy for the one that sampled.
        num_iterations=2,
        seed=3,
        **{"max_completion_length": MAX_TOKENS, **options},
    )
    rows = [{"prompt": f"{a}+{b}=?"} for a, b in ((12, 34), (56, 7), (80, 15), (3, 99))]
    trainer = bench.trainer(kind, config(**shared), rows, reward_funcs=rewards)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    ids_NL = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention_NL = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    length = batch["completion_ids"].shape[1]
    with torch.no_grad():
        behaviour_NT = logprobs(trainer.model, ids_NL, attention_NL)[:, -length:]
        reference_NT = None
        if loss.needs_reference:
            reference_NT = logprobs(trainer.ref_model, ids_NL, attention_NL)[:, -length:]
    if not is_fresh:
        move(trainer.model, 2, 0.03)
    theirs = trainer.compute_loss(trainer.model, batch)
    mask_NT = batch["completion_mask"].float()
    ours, clip_share = evaluate(
        loss,
        MicroBatch(
            logprobs(trainer.model, ids_NL, attention_NL)[:, -length:],
            mask_NT,
            reference_NT,
            SampledTensors(behaviour_NT, advantages_of(loss, batch)[:, None]),
        ),
    )
    if is_fresh:
        ours, clip_share = ours * mask_NT.sum() / len(mask_NT), None
    said = ", ".join(f"{key}={value}" for key, value in options.items())
    said += ", fresh samples" * is_fresh
    return compare(
        name,
        said,
        trainer.model,
        theirs,
        ours,
        note,
        agrees=how.get("agrees", True),
        clip_share=clip_share,
        only_gradients=is_fresh,
    )


def policy_losses(bench: Bench) -> Iterator[Comparison]:
    make, kl = LOSSES, {"beta": BETA}
    plain, grpo = {"use_bias_correction_kl": False, **kl}, make["grpo"](**kl)
    note = "TRL takes each sequence's mean first; ours is over all tokens (said in grpo.py)"
    yield online(bench, "grpo", {"loss_type": "grpo", **plain}, grpo, note, agrees=False)
    note = "TRL multiplies the KL by the ratio (arXiv 2512.02556); ours is equation 4 of GRPO"
    yield online(bench, "grpo", {"loss_type": "dapo", **kl}, grpo, note, agrees=False)
    yield online(bench, "grpo", {"loss_type": "dapo", **plain}, grpo, "the same reduction and KL")
    options = {"loss_type": "dr_grpo", "scale_rewards": "none", **plain}
    yield online(bench, "dr_grpo", options, make["dr_grpo"](max_tokens=MAX_TOKENS, **kl), "")
    yield online(bench, "dapo", {"loss_type": "dapo", "epsilon_high": 0.28}, make["dapo"](), "")
    options = {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 3e-4, "epsilon_high": 4e-4}
    yield online(bench, "gspo", options | plain, make["gspo"](**kl), "")
    options, cap = {"loss_type": "cispo", "epsilon_high": 1.1}, make["cispo"](cap=1.1)
    yield online(bench, "cispo", options, cap, "TRL's epsilon_high is the cap itself, not 1 + epsilon_high")
    rloo, off = make["rloo"](), {"beta": 0.0}
    note = "TRL's ratio and clipping are of whole sequences, and its mean over them; ours are tokens' (said in rloo.py)"
    yield online(bench, "rloo", off, rloo, note, agrees=False)
    options = {"max_completion_length": 1, **off}
    yield online(bench, "rloo", options, rloo, "one token: a sequence is its token")
    note = "gradient, ours times tokens / sequences; on fresh samples all ratios are 1"
    yield online(bench, "rloo", off, rloo, note, is_fresh=True)


def additions(count: int, *, has_carry: bool = True) -> list[tuple[str, str, str]]:
    """Prompt, worked answer, and a wrong answer without working."""
    rng, found = random.Random(0), []
    while len(found) < count:
        a, b = rng.randrange(10, 100), rng.randrange(10, 100)
        if has_carry or (a % 10 + b % 10 < 10 and a // 10 + b // 10 < 10):
            found.append((f"{a}+{b}=?", worked_answer(a, b), f"<answer>{a + b + rng.randrange(1, 99)}</answer>"))
    return found


def pair_rows(count: int = 6, prompt: str = "", *, has_carry: bool = True) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt or asked, "chosen": right, "rejected": wrong}
        for asked, right, wrong in additions(count, has_carry=has_carry)
    ]


def first_batch(trainer: Any) -> dict[str, Any]:
    return dict(next(iter(trainer.get_train_dataloader())))


def chosen_first(num_rows: int) -> Tensor:
    """Pairs of a batch whose first half is chosen."""
    return torch.arange(num_rows).view(2, -1).T


def referenced_pairs(bench: Bench, name: str, options: dict[str, Any], loss: Loss, note: str, **how: Any) -> Comparison:
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(**bench.options(per_device_train_batch_size=6, **options))
    trainer = bench.trainer(DPOTrainer, config, pair_rows())
    batch = first_batch(trainer)
    micro = sequence_micro(
        trainer,
        batch["input_ids"],
        batch["attention_mask"],
        batch["completion_mask"],
        PairTensors(chosen_first(len(batch["input_ids"]))),
    )
    theirs = trainer.compute_loss(trainer.model, batch)
    said = ", ".join(f"{key}={value}" for key, value in options.items())
    return compare(name, said, trainer.model, theirs, evaluate(loss, micro)[0], note, **how)


def unreferenced_pairs(name: str, trainer: Any, loss: Loss, said: str, note: str, **how: Any) -> Comparison:
    batch = first_batch(trainer)
    padding = {"padding_value": trainer.processing_class.pad_token_id}
    whole = trainer.concatenated_inputs(batch, is_encoder_decoder=False, device=torch.device("cpu"), **padding)
    micro = sequence_micro(
        trainer,
        whole["concatenated_input_ids"],
        whole["concatenated_attention_mask"],
        whole["concatenated_labels"] != -100,
        PairTensors(chosen_first(len(whole["concatenated_labels"]))),
    )
    theirs = trainer.compute_loss(trainer.model, batch)
    return compare(name, said, trainer.model, theirs, evaluate(loss, micro)[0], note, **how)


def pair_losses(bench: Bench) -> Iterator[Comparison]:
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    options: dict[str, Any] = {"loss_type": "sigmoid", "beta": 0.1}
    yield referenced_pairs(bench, "dpo", options, LOSSES["dpo"](beta=0.1), "")
    options = {"loss_type": "ipo", "beta": 0.1}
    note = "TRL divides each log-ratio by its length; ours sums by default, as the paper"
    yield referenced_pairs(bench, "ipo", options, LOSSES["ipo"](tau=0.1), note, agrees=False)
    yield referenced_pairs(bench, "ipo", options, LOSSES["ipo"](tau=0.1, reduction="mean"), "ours: reduction mean")

    options = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0}
    config = CPOConfig(**bench.options(per_device_train_batch_size=6, max_length=128, **options))
    trainer, note = bench.trainer(CPOTrainer, config, pair_rows()), "TRL's gamma is subtracted after beta, as ours"
    loss, said = LOSSES["simpo"](beta=2.0, gamma=1.0), ", ".join(f"{key}={value}" for key, value in options.items())
    yield unreferenced_pairs("simpo", trainer, loss, said, note)

    config = ORPOConfig(**bench.options(per_device_train_batch_size=6, max_length=128, beta=0.1))
    loss, trainer = LOSSES["orpo"](odds_weight=0.1), bench.trainer(ORPOTrainer, config, pair_rows())
    note = "TRL's NLL is a mean over the prompts' and chosen tokens of the batch; ours of each chosen, then of pairs"
    yield unreferenced_pairs("orpo", trainer, loss, "beta=0.1", note, agrees=False)
    trainer = bench.trainer(ORPOTrainer, config, pair_rows(prompt="?", has_carry=False))
    note, said = "both NLLs are then of the same tokens", "beta=0.1, prompts of one token, chosen of one length"
    yield unreferenced_pairs("orpo", trainer, loss, said, note)


def kto(bench: Bench) -> Comparison:
    from trl import KTOConfig, KTOTrainer

    rows = [
        {"prompt": asked, "completion": right if n % 3 else wrong, "label": n % 3 > 0}
        for n, (asked, right, wrong) in enumerate(additions(8))
    ]
    config = KTOConfig(**bench.options(per_device_train_batch_size=8, beta=0.1, desirable_weight=1.2))
    trainer = bench.trainer(KTOTrainer, config, rows)
    # A reference sharper than the policy leaves z above 0; at 0 the clamp would hide a wrong one.
    move(trainer.ref_model, 2, 0.1)
    batch = first_batch(trainer)
    with torch.no_grad():
        mismatched = sequence_micro(
            trainer, batch["KL_input_ids"], batch["KL_attention_mask"], batch["KL_completion_mask"], SignalTensors()
        )
    assert mismatched.reference_NT is not None
    log_ratios_N = ((mismatched.logprobs_NT - mismatched.reference_NT) * mismatched.mask_NT).sum(1)
    baseline = max(0.0, log_ratios_N.mean().item())
    assert baseline > 0, "choose another reference: z is clamped"
    micro = sequence_micro(
        trainer,
        batch["input_ids"],
        batch["attention_mask"],
        batch["completion_mask"],
        LabelTensors(torch.as_tensor(batch["label"]).float(), baseline),
    )
    theirs = trainer.compute_loss(trainer.model, batch)
    ours, _ = evaluate(LOSSES["kto"](beta=0.1, desirable_weight=1.2), micro)
    note = f"z = {baseline:.3f} from TRL's mismatched rows, the completions of the batch moved by one"
    return compare("kto", "beta=0.1, desirable_weight=1.2", trainer.model, theirs, ours, note)


def sft(bench: Bench) -> Comparison:
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": asked, "completion": right} for asked, right, _ in additions(6)]
    trainer = bench.trainer(SFTTrainer, SFTConfig(**bench.options(per_device_train_batch_size=6)), rows)
    batch = first_batch(trainer)
    mask_NL = batch["labels"] != -100
    micro = sequence_micro(trainer, batch["input_ids"], batch["attention_mask"], mask_NL, SignalTensors())
    theirs = trainer.compute_loss(trainer.model, batch, num_items_in_batch=mask_NL.sum())
    return compare("sft", "completions only", trainer.model, theirs, evaluate(LOSSES["sft"](), micro)[0], "")


def main() -> None:
    if importlib.util.find_spec("trl") is None:
        ensure_trl()
        python = str(TRL_VENV / "bin" / "python")
        # DeepSpeed, imported by accelerate, would say in the table that it chose the CPU itself.
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
        os.execve(python, [python, "-W", "ignore", __file__], environment)
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    print("| loss | TRL's setting | TRL | ours | value differs by | gradient by | clipped | | |")
    print("|---|---|---|---|---|---|---|---|---|")
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        for rows in (policy_losses(bench), pair_losses(bench), (make(bench) for make in (kto, sft))):
            for row in rows:
                print(show(row), flush=True)
                failed += not row.is_as_expected
    if failed:
        sys.exit(f"{failed} rows are not as expected")


if __name__ == "__main__":
    main()

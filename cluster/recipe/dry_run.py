"""What `--dry-run` prints: the resolved recipe, the batch arithmetic, and the memory that the run will take."""

from volley.cluster.recipe.config import dump_recipe
from volley.cluster.recipe.prepare import RunParts

BYTES_PER_WEIGHT = {"bf16": 2, "fp32": 4}


def plan_text(parts: RunParts) -> str:
    """The output of `--dry-run`: the resolved recipe, the batch arithmetic, and the estimated memory."""
    recipe, facts = parts.recipe, parts.model
    lines = [dump_recipe(recipe).rstrip(), "", "# batch"]
    num_rows = len(parts.dataset or parts.prompts)
    passes = recipe.steps * recipe.groups_per_step / num_rows
    if parts.is_sampled:
        samples = recipe.groups_per_step * recipe.rollout.group_size
        lines.append(
            f"{recipe.groups_per_step} groups x {recipe.rollout.group_size} completions = {samples} samples a step, at "
            f"most {samples * recipe.rollout.max_tokens:,} completion tokens; {recipe.steps} steps = {passes:.2f} "
            f"passes over {num_rows:,} rows"
        )
        slots = (recipe.max_staleness + 1) * recipe.groups_per_step
        lines.append(f"{slots} groups in flight at most; samples are at most {recipe.max_staleness} versions old")
        if recipe.publish_every > 1:
            share = recipe.publish_every * recipe.groups_per_step / num_rows
            lines.append(f"a round of {recipe.publish_every} steps under the same weights = {share:.2f} passes")
    else:
        lines.append(
            f"{recipe.groups_per_step} {parts.loss.signal.label} a step; {recipe.steps} steps = {passes:.2f} passes "
            f"over {num_rows:,}"
        )
    lines.append(
        f"{parts.prompts.num_dropped_long} prompts dropped as too long; {len(parts.test_prompts)} test prompts"
    )
    lines += ["", "# memory, estimated", *memory_lines(parts)]
    lines.append(f"\n{facts.architecture}, {facts.num_parameters:,} parameters")
    lines.append("Recipe is valid (dry run, nothing was started).")
    return "\n".join(lines)


def memory_lines(parts: RunParts) -> list[str]:
    """An estimate of the device memory of learner and engine. Activations are its least certain part."""
    recipe, facts = parts.recipe, parts.model
    learner, n = recipe.learner, facts.num_parameters
    weight = BYTES_PER_WEIGHT[learner.dtype]
    shard = {stage: learner.ranks if learner.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    master = 4 * n if learner.dtype == "bf16" else 0
    sizes = {
        "weights": weight * n / shard[3],
        "gradients": weight * n / shard[2],
        "optimizer state" + (" (host)" if learner.cpu_offload else ""): (8 * n + master) / shard[1],
        "reference": weight * n if parts.loss.needs_reference and not parts.records_reference else 0,
        # About 16 hidden-size vectors per token and layer live until the backward pass; 1 with checkpointing.
        "activations": learner.max_tokens_per_micro_batch
        * facts.hidden_size
        * facts.num_layers
        * weight
        * (1 if learner.gradient_checkpointing else 16),
        "logits of a chunk": 3 * learner.logprob_chunk_bytes,
    }
    lines = [f"learner, each of {learner.ranks}: {_gib(sum(sizes.values()))}"]
    lines += [f"  {name}: {_gib(size)}" for name, size in sizes.items() if size]
    if parts.needs_engine:
        engine_weight = weight if recipe.rollout.dtype == "auto" else BYTES_PER_WEIGHT[recipe.rollout.dtype]
        per_token = 2 * facts.num_layers * facts.num_kv_heads * facts.head_dim * engine_weight
        cache = recipe.rollout.kv_cache_gib * 2**30
        lines.append(f"engine: {_gib(engine_weight * n + cache)}")
        lines.append(f"  weights: {_gib(engine_weight * n)}")
        lines.append(f"  KV cache (CPU): {_gib(cache)} = {cache / per_token:,.0f} tokens")
    return lines


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"

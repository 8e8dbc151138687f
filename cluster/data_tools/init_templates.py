"""The text of the recipes that `volley init` writes. In it ` ## ` starts a comment that is aligned with the others.

What a recipe is made of: HEAD, then PACE of a run that samples, DATA, ROLLOUT where it samples, rewards, the loss, and
LEARNER. Keys that a method does not need are left out.
"""

import textwrap

COMMENT_COLUMN = 36
WIDTH = 118

HEAD = """\
name: {name} ## the run is kept in runs/{name}
model: {model} ## a model directory, or a name on the Hugging Face hub
seed: 0 ## decides the order of the rows and every random number
steps: {steps} ## optimizer steps; {epochs} of your data
groups_per_step: {groups} ## {unit} per step
{pace}save_every: 50 ## steps between checkpoints (continue with --resume); 0: only at the end
{evaluation}launcher: local ## one process on this machine

"""

PACE = """\
max_staleness: 0 ## weight versions a sample may be old: 0 is synchronous; 1 generates while learning
publish_every: 1 ## steps between pushes of new weights to the sampler
"""

ROUNDS = """\
publish_every: {round} ## steps of a round, here a pass over your data, after which the sampler gets the new weights
"""

EVALUATION = """\
eval_every: {eval_every} ## steps between evaluations on data.test; 0: at the start and the end only
"""

DATA = """\
data:
  train: {train}
{test}  columns: {columns} ## our name: your column{kept}
{extra}  max_prompt_tokens: 0 ## 0: what the model's length leaves beside max_tokens; {lengths}
  on_long: drop ## {on_long}; "refuse" stops instead

"""

ROLLOUT = """\
rollout:
  group_size: {group_size} ## {group_comment}
  temperature: 1.0
  max_tokens: {max_tokens} ## longer responses are cut off there and marked as truncated

"""

REFERENCE = """\
reference: {{refresh_every: {refresh}}} ## {comment}
"""

STOP = """\
stop_at: {indistinguishable: 0.55} ## ends when the data's answers win less often than this; 0.5 is chance
"""

LEARNER = """\

learner:
  dtype: bf16 ## with float32 master weights; fp32 for exact repetition on CPUs
  zero_stage: 1 ## DeepSpeed ZeRO, 0 to 3
  lr: {lr} ## peak learning rate
  warmup_steps: {warmup_steps} ## steps until the learning rate is reached
  max_tokens_per_micro_batch: 16384 ## lower it when memory runs out
  gradient_checkpointing: false ## true saves memory and costs time
"""

EVAL = """\

eval: {max_prompts: 200, samples: 0, temperature: 1.0} ## samples: responses per prompt for pass@k and maj@k
"""

EVAL_OF_DATA = """\

eval: {max_prompts: 500} ## rows of data.test that loss and accuracy are measured on; 0: all
"""

MATH_REWARDS = """\
rewards:
  - {name: math, weight: 1.0} ## 1 where the response's final answer equals data's answer, else 0
"""

THINK_REWARD = """\
  - {name: think_format, weight: 0.1} ## 1 for <think> ... </think> and then the answer, else 0
"""

OWN_REWARD = """\
# {why}: write reward.py beside this file and improve it there:
#   def reward(prompt: str, response: str, answer: str, **row) -> float:
#       return {body}
rewards:
  - {{name: "reward.py:reward", weight: 1.0{accuracy}}}
"""


def remarks(*sentences: str) -> str:
    """Comments at the top of a recipe, a paragraph each."""
    return "".join(
        textwrap.fill(each, WIDTH, initial_indent="# ", subsequent_indent="#   ", break_long_words=False) + "\n"
        for each in sentences
        if each
    )


def aligned(text: str) -> str:
    """`text` with its ` ## ` comments in one column."""
    return "".join(_aligned(line) for line in text.splitlines(keepends=True))


def _aligned(line: str) -> str:
    value, mark, comment = line.rpartition(" ## ")
    return f"{value:<{COMMENT_COLUMN - 1}} # {comment}" if mark else line

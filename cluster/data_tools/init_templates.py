"""The text of the recipes that `volley init` writes. ` ## ` starts a comment that is aligned with the others.

A recipe consists of HEAD (with SCHEDULE for a run that samples), DATA, ROLLOUT (if it samples), rewards, the loss, and
LEARNER. Keys that a method does not need are omitted.
"""

import textwrap

COMMENT_COLUMN = 36
WIDTH = 118

HEAD = """\
name: {name} ## output goes to runs/{name}
model: {model} ## a model directory or a name on the Hugging Face hub
seed: 0 ## for the order of the rows and all random numbers
steps: {steps} ## optimizer steps; {epochs} of your data
groups_per_step: {groups} ## {unit} per step
{schedule}save_every: 50 ## steps between checkpoints (continue with --resume); 0: only at the end
{evaluation}launcher: local ## a single process on this machine

"""

SCHEDULE = """\
max_staleness: 0 ## maximum lag of samples in weight versions; 0: synchronous, 1: sample while learning
publish_every: 1 ## steps between weight updates of the rollout engine
"""

ROUNDS = """\
publish_every: {round} ## steps between weight updates of the rollout engine: one round, here one epoch
"""

EVALUATION = """\
eval_every: {eval_every} ## steps between evaluations on data.test; 0: only at the start and the end
"""

DATA = """\
data:
  train: {train}
{test}  columns: {columns} ## Volley's name: your column{kept}
{extra}  max_prompt_tokens: 0 ## 0: the model's maximum length minus max_tokens; {lengths}
  on_long: drop ## {on_long}; "refuse" stops with an error

"""

ROLLOUT = """\
rollout:
  group_size: {group_size} ## {group_comment}
  temperature: 1.0
  max_tokens: {max_tokens} ## longer responses are cut off and marked as truncated

"""

REFERENCE = """\
reference: {{refresh_every: {refresh}}} ## {comment}
"""

STOP = """\
stop_at: {indistinguishable: 0.55} ## stop when the data's responses win less often than this; 0.5 is chance
"""

LEARNER = """\

learner:
  dtype: bf16 ## with float32 master weights; fp32 for exact reproducibility on CPUs
  zero_stage: 1 ## DeepSpeed ZeRO, 0 to 3
  lr: {lr} ## peak learning rate
  warmup_steps: {warmup_steps} ## steps of linear warm-up
  max_tokens_per_micro_batch: 16384 ## reduce it if you run out of memory
  gradient_checkpointing: false ## true trades speed for memory
"""

EVAL = """\

eval: {max_prompts: 200, samples: 0, temperature: 1.0} ## samples: responses per prompt for pass@k and maj@k
"""

EVAL_OF_DATA = """\

eval: {max_prompts: 500} ## number of rows of data.test to evaluate; 0: all
"""

MATH_REWARDS = """\
rewards:
  - {name: math, weight: 1.0} ## 1 if the response's final answer equals the reference answer, else 0
"""

THINK_REWARD = """\
  - {name: think_format, weight: 0.1} ## 1 for <think> ... </think> followed by an answer, else 0
"""

OWN_REWARD = """\
# {why}. Write your own in reward.py next to this file, for example:
#   def reward(prompt: str, response: str, answer: str, **row) -> float:
#       return {body}
rewards:
  - {{name: "reward.py:reward", weight: 1.0{accuracy}}}
"""


def remarks(*sentences: str) -> str:
    """Comments at the top of a recipe, one paragraph each."""
    return "".join(
        textwrap.fill(each, WIDTH, initial_indent="# ", subsequent_indent="#   ", break_long_words=False) + "\n"
        for each in sentences
        if each
    )


def aligned(text: str) -> str:
    """`text` with its ` ## ` comments aligned in one column."""
    return "".join(_aligned(line) for line in text.splitlines(keepends=True))


def _aligned(line: str) -> str:
    value, mark, comment = line.rpartition(" ## ")
    return f"{value:<{COMMENT_COLUMN - 1}} # {comment}" if mark else line

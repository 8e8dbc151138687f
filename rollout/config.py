"""Configuration of data and sampling. Ranges are checked here, where the values are owned."""

from dataclasses import dataclass, field

from volley.rollout.errors import ConfigError, require_at_least
from volley.rollout.types import Sampling

COLUMNS = ("prompt", "answer", "completion", "chosen", "rejected", "label")
"""Of a data set, as Volley calls them."""


@dataclass(frozen=True)
class DataConfig:
    """Where the rows come from and what their columns are called.

    train, test: a .jsonl or .parquet file, a directory of `datasets`, or a Hugging Face data set name
    (`name`, `name:split` or `name/config:split`). columns: our name -> the data's name, for `prompt`, `answer`,
    `completion`, `chosen`, `rejected`, `label`. answer_after: keep only what follows the last occurrence of this text
    in the answer (GSM8K: "####"). prompt_template: text with `{prompt}`; makes a raw prompt of a plain column. as_chat:
    wrap a text prompt as one user message and apply the model's chat template. system: system message, with chat only.
    max_prompt_tokens: 0 is what the model's length leaves beside
    rollout.max_tokens, 4096 at most. on_long: what to do with longer prompts: "drop" (counted) or "refuse".
    completions: who answers the prompts: "dataset" (chosen and rejected; completion and label; completion), "policy",
    "both" (SPIN: the data's completion against the policy's own) or "auto": the data set where it has the columns that
    the loss reads, else the policy.
    """

    train: str
    test: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    answer_after: str = ""
    prompt_template: str = ""
    as_chat: bool = False
    system: str = ""
    max_prompt_tokens: int = 0
    on_long: str = "drop"
    completions: str = "auto"

    def __post_init__(self) -> None:
        for name in self.columns:
            if name not in COLUMNS:
                raise ConfigError(
                    f"data.columns: '{name}' is not a column Volley reads; it reads {', '.join(COLUMNS)}."
                )
        if self.completions not in ("auto", "dataset", "policy", "both"):
            raise ConfigError(
                f"data.completions is '{self.completions}'; it must be 'auto', 'dataset', 'policy' or 'both'."
            )
        if self.on_long not in ("drop", "refuse"):
            raise ConfigError(f"data.on_long is '{self.on_long}'; it must be 'drop' or 'refuse'.")
        if self.max_prompt_tokens < 0:
            raise ConfigError(f"data.max_prompt_tokens is {self.max_prompt_tokens}; it must be 0 (what fits) or more.")
        if self.prompt_template and "{prompt}" not in self.prompt_template:
            raise ConfigError("data.prompt_template has no '{prompt}' in it, so every prompt would be the same.")
        if self.system and not self.as_chat:
            raise ConfigError("data.system needs data.as_chat: true; a system message only exists in a chat.")


@dataclass(frozen=True)
class TransferConfig:
    """How weights go over the wire. backend: "gloo" (CPUs), "nccl" (GPUs), or "auto". bucket_bytes: of one message.
    connect_s, transfer_s, commit_s: how long the group may take to form, a transfer to stand at one place (not to take
    in all), an engine to load what arrived."""

    backend: str = "auto"
    bucket_bytes: int = 32 << 20
    connect_s: float = 60.0
    transfer_s: float = 300.0
    commit_s: float = 300.0

    def __post_init__(self) -> None:
        if self.backend not in ("auto", "gloo", "nccl"):
            raise ConfigError(f"transfer.backend is '{self.backend}'; it must be 'auto', 'gloo' or 'nccl'.")
        for name in ("bucket_bytes", "connect_s", "transfer_s", "commit_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"transfer.{name} is {getattr(self, name)}; it must be above 0.")


@dataclass(frozen=True)
class RolloutConfig:
    """How completions are sampled.

    group_size: completions per prompt (G). max_tokens: completion tokens at most. stop: strings that end one.
    max_replacements: groups drawn anew at most, per step and as a multiple of groups_per_step, for groups whose
    rewards are all equal; 0 keeps them in the batch (their advantages are 0). dtype "auto" is the learner's.
    workers: engines; tensor_parallel: devices that each of them is spread over. min_workers: how many must live for
    training to go on while lost ones start again.
    kv_cache_gib (CPU), gpu_memory_utilization (GPU), max_num_seqs: handed to vLLM. enforce_eager: no compilation
    (starts sooner, runs slower).
    """

    workers: int = 1
    min_workers: int = 1
    tensor_parallel: int = 1
    group_size: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    max_replacements: float = 2.0
    dtype: str = "auto"
    max_num_seqs: int = 256
    kv_cache_gib: float = 1.0
    gpu_memory_utilization: float = 0.4
    enforce_eager: bool = False

    def __post_init__(self) -> None:
        at_least = {
            "workers": 1,
            "min_workers": 1,
            "tensor_parallel": 1,
            "group_size": 1,
            "max_tokens": 1,
            "max_num_seqs": 1,
            "max_replacements": 0,
        }
        require_at_least(self, at_least, "rollout.")
        if self.min_workers > self.workers:
            raise ConfigError(
                f"rollout.min_workers is {self.min_workers}, but rollout.workers is {self.workers}; lower it."
            )
        if self.temperature <= 0:
            raise ConfigError(
                f"rollout.temperature is {self.temperature}; it must be above 0, because training needs samples that "
                "differ (evaluation is greedy by itself)."
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"rollout.top_p is {self.top_p}; it must be above 0 and at most 1.")
        if self.dtype not in ("auto", "bf16", "fp32"):
            raise ConfigError(f"rollout.dtype is '{self.dtype}'; it must be 'auto', 'bf16' or 'fp32'.")
        if self.kv_cache_gib <= 0:
            raise ConfigError(f"rollout.kv_cache_gib is {self.kv_cache_gib}; it must be above 0.")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"rollout.gpu_memory_utilization is {self.gpu_memory_utilization}; it must be above 0 and at most 1."
            )

    @property
    def sampling(self) -> Sampling:
        """How training samples are drawn."""
        return Sampling(self.group_size, self.temperature, self.top_p, self.max_tokens, self.stop)

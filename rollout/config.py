"""Configuration of data, sampling and weight transfer, with the checks of their ranges."""

from dataclasses import dataclass, field

from volley.rollout.errors import ConfigError, require_at_least
from volley.rollout.types import Sampling

COLUMNS = ("prompt", "answer", "completion", "chosen", "rejected", "label")
"""Volley's names for the columns of a data set."""


@dataclass(frozen=True)
class DataConfig:
    """Where the rows come from and how prompts are made of them."""

    train: str
    """A .jsonl or .parquet file, a directory of `datasets`, or a Hugging Face data set (`name`, `name:split` or
    `name/config:split`)."""
    test: str = ""
    """Like `train`."""
    columns: dict[str, str] = field(default_factory=dict)
    """Volley's name -> the data's name, for the columns in `COLUMNS`."""
    answer_after: str = ""
    """Keep only what follows the last occurrence of this text in the answer (GSM8K: "####")."""
    prompt_template: str = ""
    """Text with `{prompt}`, into which a text prompt is inserted."""
    as_chat: bool = False
    """Wrap a text prompt as one user message and apply the model's chat template."""
    system: str = ""
    """System message; only with chats."""
    max_prompt_tokens: int = 0
    """0: what rollout.max_tokens leaves of the model's length, at most 4096."""
    on_long: str = "drop"
    """What to do with longer prompts: "drop" (they are counted) or "refuse"."""
    completions: str = "auto"
    """Who answers the prompts: "dataset" (its chosen and rejected, completion and label, or completion), "policy",
    "both" (SPIN: the data's completion against the policy's own), or "auto": the data set if it has the columns that
    the loss reads, otherwise the policy."""

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
    """How weights are sent to the engines."""

    backend: str = "auto"
    """"gloo" (CPUs), "nccl" (GPUs), or "auto"."""
    bucket_bytes: int = 32 << 20
    """Size of one message."""
    connect_s: float = 60.0
    """How long the group may take to form."""
    transfer_s: float = 300.0
    """How long a transfer may make no progress. Its total time is not limited."""
    commit_s: float = 300.0
    """How long an engine may take to load what it received."""

    def __post_init__(self) -> None:
        if self.backend not in ("auto", "gloo", "nccl"):
            raise ConfigError(f"transfer.backend is '{self.backend}'; it must be 'auto', 'gloo' or 'nccl'.")
        for name in ("bucket_bytes", "connect_s", "transfer_s", "commit_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"transfer.{name} is {getattr(self, name)}; it must be above 0.")


@dataclass(frozen=True)
class RolloutConfig:
    """How completions are sampled."""

    workers: int = 1
    """Engines."""
    min_workers: int = 1
    """Engines that must be alive for training to continue while lost ones restart."""
    tensor_parallel: int = 1
    """Devices per engine."""
    group_size: int = 8
    """Completions per prompt (G)."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    """Upper limit of tokens per completion."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion."""
    max_replacements: float = 2.0
    """Upper limit of groups that are drawn to replace groups whose rewards are all equal, per step and as a multiple of
    groups_per_step. 0 keeps such groups in the batch, with advantages of 0."""
    dtype: str = "auto"
    """"bf16", "fp32", or "auto": the learner's."""
    max_num_seqs: int = 256
    """Passed to vLLM."""
    kv_cache_gib: float = 1.0
    """Size of the KV cache on CPUs. Passed to vLLM."""
    gpu_memory_utilization: float = 0.4
    """Passed to vLLM."""
    enforce_eager: bool = False
    """Do not compile the model: starts faster, runs slower."""

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

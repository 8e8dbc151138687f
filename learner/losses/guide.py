"""What users read about a loss, and the settings that Volley proposes for it. Each loss has its own."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Guide:
    """Documentation and advice of one loss."""

    title: str
    """Its usual name: "Dr. GRPO"."""
    merit: str = ""
    """When to use it: a sentence without its full stop. {small_pairs} is replaced by the number of pairs below which a
    data set counts as small."""
    options: str = ""
    """The options that a proposed recipe shows, as YAML: "beta: 0.1"."""
    comment: str = ""
    """About these options."""
    lr: float = 1e-6
    """Proposed peak learning rate."""
    epochs: int = 1
    """Proposed passes over the completions of a data set. Methods that overfit later get more."""
    gentler: str = "lower learner.lr or steps"
    """How to keep the chosen completions likely, where they become less likely."""

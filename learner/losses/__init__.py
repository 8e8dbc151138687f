"""Every loss, by the name that a recipe uses. A new loss is one file and one line here."""

from learner.losses.common import Loss
from learner.losses.dapo import Dapo
from learner.losses.dr_grpo import DrGrpo
from learner.losses.grpo import Grpo
from learner.losses.rloo import Rloo
from learner.losses.sft import Sft

LOSSES: dict[str, type[Loss]] = {
    "grpo": Grpo,
    "dr_grpo": DrGrpo,
    "dapo": Dapo,
    "rloo": Rloo,
    "sft": Sft,
}

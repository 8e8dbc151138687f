"""Every loss, by the name that a recipe uses. A new loss is one file and one line here."""

from learner.losses.cispo import Cispo
from learner.losses.common import Loss
from learner.losses.dapo import Dapo
from learner.losses.dpo import Dpo
from learner.losses.dr_grpo import DrGrpo
from learner.losses.grpo import Grpo
from learner.losses.gspo import Gspo
from learner.losses.ipo import Ipo
from learner.losses.kto import Kto
from learner.losses.orpo import Orpo
from learner.losses.ppo import Ppo
from learner.losses.reinforce_pp import ReinforcePP
from learner.losses.rloo import Rloo
from learner.losses.sft import Sft
from learner.losses.simpo import SimPo

LOSSES: dict[str, type[Loss]] = {
    "grpo": Grpo,
    "dr_grpo": DrGrpo,
    "dapo": Dapo,
    "gspo": Gspo,
    "cispo": Cispo,
    "rloo": Rloo,
    "reinforce_pp": ReinforcePP,
    "ppo": Ppo,
    "dpo": Dpo,
    "ipo": Ipo,
    "simpo": SimPo,
    "orpo": Orpo,
    "kto": Kto,
    "sft": Sft,
}

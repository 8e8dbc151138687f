"""Every loss, by the name that a recipe uses. A new loss is one file and one line here."""

from volley.learner.losses.common import Loss
from volley.learner.losses.policy.cispo import Cispo
from volley.learner.losses.policy.dapo import Dapo
from volley.learner.losses.policy.dr_grpo import DrGrpo
from volley.learner.losses.policy.grpo import Grpo
from volley.learner.losses.policy.gspo import Gspo
from volley.learner.losses.policy.ppo import Ppo
from volley.learner.losses.policy.reinforce_pp import ReinforcePP
from volley.learner.losses.policy.rloo import Rloo
from volley.learner.losses.preference.dpo import Dpo
from volley.learner.losses.preference.ipo import Ipo
from volley.learner.losses.preference.kto import Kto
from volley.learner.losses.preference.orpo import Orpo
from volley.learner.losses.preference.simpo import SimPo
from volley.learner.losses.sft import Sft

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

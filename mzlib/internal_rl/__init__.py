"""Internal RL: a policy acts in code space, on the options' timescale; backbone, switch and hypernetwork are part of
its environment (Kobayashi et al. 2025, Appendix C.5).

One option: the policy gives a code z; until the switch opens (β ≥ threshold, tested on the state after the action) or
the episode ends, actions are drawn from the backbone's upper blocks with the residual stream controlled by z.

    python -m mzlib.internal_rl --profile full
"""

from mzlib.internal_rl.options import ActionVectorEnv, Episodes, OptionVectorEnv
from mzlib.internal_rl.pinpad import (
    ControlledPinpad,
    OptionEnv,
    raw_policy,
    raw_rollout,
    rollout,
)
from mzlib.internal_rl.policies import ActionPolicy, CodePolicy, Critic, PriorCodes, agent_policy
from mzlib.internal_rl.tasks import Task
from mzlib.internal_rl.training import ReinforceConfig, run
from mzlib.internal_rl.updates import InternalRLConfig, Lived, gradient_noise, update

__all__ = [
    "ActionPolicy",
    "ActionVectorEnv",
    "CodePolicy",
    "ControlledPinpad",
    "Critic",
    "Episodes",
    "InternalRLConfig",
    "Lived",
    "OptionEnv",
    "OptionVectorEnv",
    "PriorCodes",
    "ReinforceConfig",
    "Task",
    "agent_policy",
    "gradient_noise",
    "raw_policy",
    "raw_rollout",
    "rollout",
    "run",
    "update",
]

"""Go-Explore, phase 2: demonstrations robustified into a policy that plays under sticky actions.

The backward algorithm (Salimans & Chen 2018, arXiv:1812.03381; Ecoffet et al. 2021, arXiv:2004.12919): episodes begin
near a demo's end; when enough of them reach its score the start moves back, until it is the game's own reset.

    python -m mzlib.robustify --profile full
"""

from mzlib.robustify.curriculum import Curriculum, CurriculumConfig, Tape, cut_at, shortest, tapes
from mzlib.robustify.training import Backward, RobustifyConfig, run

__all__ = [
    "Backward",
    "Curriculum",
    "CurriculumConfig",
    "RobustifyConfig",
    "Tape",
    "cut_at",
    "run",
    "shortest",
    "tapes",
]

"""`python -m mzlib.internal_rl`."""

from mzlib.internal_rl.training import ReinforceConfig, run
from mzlib.runs import stage_main

if __name__ == "__main__":
    stage_main("internal_rl", "04_internal_rl", ReinforceConfig, run)

"""`python -m mzlib.robustify`."""

from mzlib.robustify.training import RobustifyConfig, run
from mzlib.runs import stage_main

if __name__ == "__main__":
    stage_main("robustify", "06_robustify", RobustifyConfig, run)

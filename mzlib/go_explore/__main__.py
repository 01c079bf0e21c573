"""`python -m mzlib.go_explore --profile quick --set seed=3`."""

from mzlib.go_explore.search import GoExploreConfig, run
from mzlib.runs import stage_main

if __name__ == "__main__":
    stage_main("go_explore", "05_go_explore", GoExploreConfig, run)

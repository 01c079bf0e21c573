"""Go-Explore, phase 1: an archive of cells and an explorer that returns to them by restoring the emulator.

    config = GoExploreConfig(cells="domain", total_steps=200_000)
    with Run.open("05_go_explore", "quick", config) as folder:
        headline = run(config, folder)

Ecoffet et al. 2021, *First return, then explore* (arXiv:2004.12919), and 2019 (arXiv:1901.10995).
"""

from mzlib.go_explore.archive import Archive, Best, Candidate, Episode, Pick
from mzlib.go_explore.cells import cell_function, domain, downscaled, gates
from mzlib.go_explore.log import Node
from mzlib.go_explore.search import GoExploreConfig, Search, demo_of, load_archive, open_search, room_states, run
from mzlib.go_explore.workers import Explorer, Task, Workers

__all__ = [
    "Archive",
    "Best",
    "Candidate",
    "Episode",
    "Explorer",
    "GoExploreConfig",
    "Node",
    "Pick",
    "Search",
    "Task",
    "Workers",
    "cell_function",
    "demo_of",
    "domain",
    "downscaled",
    "gates",
    "load_archive",
    "open_search",
    "room_states",
    "run",
]

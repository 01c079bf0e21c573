"""Run folders, profiles, seeds, devices, results; the stages' command line and the notebooks' executor.

    config = config_from(GoExploreConfig, load_profile("quick", "05_go_explore"))
    with Run.open("05_go_explore", "quick", config) as run:     # runs/quick/05_go_explore, resumed when it exists
        run.log(1000, cells=42)
        run.finish(cells=42)

`python -m mzlib.runs notebook 05_go_explore --profile quick -p seed 3` executes a notebook, `python -m mzlib.runs
status` lists runs.
"""

from .cli import stage_main
from .folders import (
    Run,
    atomic_path,
    data_dir,
    found_runs,
    given_path,
    read_final,
    read_metrics,
    run_folder,
    runs_root,
    write_atomic,
)
from .machine import (
    REPO,
    code_hash,
    fast_bfloat16,
    git_commit,
    in_processes,
    machine,
    pick_device,
    progress,
    seed_everything,
    torch_threads,
    versions,
)
from .profiles import config_from, load_profile
from .results import read_curve, read_results, write_curve, write_result
from .training import load_training, save_training, stop_button, train
from .weights import load_weights, save_weights, upstream_weights, weights_sha256

__all__ = [
    "REPO",
    "Run",
    "atomic_path",
    "code_hash",
    "config_from",
    "data_dir",
    "fast_bfloat16",
    "found_runs",
    "given_path",
    "git_commit",
    "in_processes",
    "load_profile",
    "load_training",
    "load_weights",
    "machine",
    "pick_device",
    "progress",
    "read_curve",
    "read_final",
    "read_metrics",
    "read_results",
    "run_folder",
    "runs_root",
    "save_training",
    "save_weights",
    "seed_everything",
    "stage_main",
    "stop_button",
    "torch_threads",
    "train",
    "upstream_weights",
    "versions",
    "weights_sha256",
    "write_atomic",
    "write_curve",
    "write_result",
]

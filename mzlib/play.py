"""Watch or evaluate an agent: `python -m mzlib.play --demo best --render out.mp4`, `… --policy shipped`.

A policy or a backbone plays from reset under the protocol of `mzlib.evaluate`. A demo is replayed as it was recorded;
with --episodes its actions are played open loop from reset instead.
"""

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from mzlib import demos
from mzlib.demos import Demo
from mzlib.evaluate import Episode, EvaluationProtocol, OpenLoop, Policy, evaluate, summarise, watch
from mzlib.internal_rl import agent_policy
from mzlib.policies import ActorCriticPolicy, ClonePolicy
from mzlib.runs import data_dir
from mzlib.steering import prior_policy
from mzlib.viz.clips import render_steps, write_mp4
from mzlib.viz.segments import render_codes

CLONES = ("backbone", "metacontroller", "agent")  # each acts by those before it
SHOWN = ("episodes", "mean", "median", "iqm", "first_life_mean", "first_key_rate", "rooms_max", "steps_per_s")


def find_demo(name: str) -> Demo:
    """The demo called `name`: "best" (highest score, then shortest, of data/demos), "FILE.npz" (its best) or
    "FILE.npz#12".

    A bare file name is looked for in data/demos too. ValueError or FileNotFoundError, in one line, if there is none.
    """
    if name == "best":
        candidates = [demo for path in sorted(data_dir("demos").glob("*.npz")) for demo in demos.load(path)]
        if not candidates:
            raise FileNotFoundError("data/demos/ holds no demo file; fetch the repository again, or name a file")
    else:
        file, numbered, index = name.partition("#")
        if not file:
            raise ValueError(f"--demo {name!r}: best, FILE.npz or FILE.npz#N is needed")
        path = Path(file) if Path(file).exists() else data_dir("demos", file)
        candidates = demos.load(path)
        if numbered:
            if not index.isdigit() or int(index) >= len(candidates):
                raise ValueError(f"--demo {name}: {path.name} holds demos 0 to {len(candidates) - 1}")
            return candidates[int(index)]
    return min(candidates, key=lambda demo: (-demo.score, len(demo)))


def as_recorded(demo: Demo, max_steps: int | None, clip: Path | None) -> dict:
    """Replay the demo as it was recorded, summed up like an evaluation of one episode; with `clip` also written as
    mp4."""
    since = time.perf_counter()
    actions = demo.actions[:max_steps].tolist()
    episode = Episode(demos.start(demo), len(actions), demo.noops)
    played = ((episode.emulator, action, episode.step(action)) for action in actions)
    if clip is None:
        deque(played, maxlen=0)
    else:
        write_mp4(clip, render_steps(played))
    protocol = {"what": "a search's demo replayed as recorded", "game": demo.game, "sticky": demo.sticky}
    protocol |= {"seed": demo.seed, "noops": demo.noops, "frames_per_action": demo.frames_per_action}
    return summarise([episode.tally()], protocol, time.perf_counter() - since)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mzlib.play", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--backbone", metavar="shipped|FILE", help="a clone to play: data/weights' own, or a .safetensors file"
    )
    parser.add_argument(
        "--metacontroller",
        metavar="shipped|FILE",
        help="steer the backbone (shipped unless given) by codes from the prior: likewise",
    )
    parser.add_argument(
        "--agent",
        metavar="shipped|FILE",
        help="codes from a code policy (notebook 04) in place of the prior: likewise; with its --metacontroller",
    )
    parser.add_argument("--temperature", type=float, help="of the clone's actions (default: 0.5)")
    parser.add_argument("--switch-rate", type=int, help="a new code every so many steps at least (default: as trained)")
    parser.add_argument("--beta-threshold", type=float, help="the switch is open from this β on (default: 0.5)")
    parser.add_argument("--policy", metavar="shipped|FILE", help="a robustified policy to play: likewise")
    parser.add_argument("--deterministic", action="store_true", help="the agent's likeliest action, not a draw")
    parser.add_argument("--demo", default="best", metavar="best|FILE[#N]", help="whose actions to play (default: best)")
    parser.add_argument(
        "--render", type=Path, metavar="OUT.mp4", help="write a clip of the replay, or of the first episode"
    )
    parser.add_argument("--episodes", type=int, help="play so many episodes from reset (an agent: 20)")
    parser.add_argument("--seed", type=int, help=f"the first episode's (default: {EvaluationProtocol.first_seed})")
    parser.add_argument("--max-steps", type=int, help="cut every episode after so many steps")
    parser.add_argument("--sticky", type=float, help=f"of the episodes (default: {EvaluationProtocol.sticky})")
    parser.add_argument("--workers", type=int, help="processes for the episodes (default: one a core)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def weights_of(kind: str, named: str, steered: bool = False) -> Path:
    """The weights file of an agent: data/weights' own, or the one named. steered: by codes, which have a backbone of
    their own, cloned from walks between places."""
    name = "backbone_places" if kind == "backbone" and steered else kind
    return data_dir("weights", f"{name}.safetensors") if named == "shipped" else Path(named)


def play(given: argparse.Namespace) -> dict:
    """What the command line asks for; returns the summary."""
    for name in ("episodes", "max_steps"):
        if (value := getattr(given, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
    if given.render is not None and given.render.suffix != ".mp4":
        raise ValueError(f"--render {given.render}: a name ending in .mp4 is needed")
    settings = clone_settings(given)
    if given.policy is not None:
        weights = weights_of("policy", given.policy)
        return agent_plays("policy", partial(ActorCriticPolicy, weights, greedy=given.deterministic), weights, given)
    named = {kind: getattr(given, kind) for kind in CLONES}
    if any(named.values()):
        last = max(place for place, kind in enumerate(CLONES) if named[kind])
        weights = [weights_of(kind, named[kind] or "shipped", last > 0) for kind in CLONES[: last + 1]]
        maker = (ClonePolicy, prior_policy, agent_policy)[last]
        return agent_plays(CLONES[last], partial(maker, *weights, **settings), weights[-1], given)
    if given.deterministic:
        raise ValueError("--deterministic: a demo has nothing to draw; give --policy or --backbone")
    demo = find_demo(given.demo)
    if given.episodes is None:
        for name in ("seed", "sticky", "workers"):
            if (value := getattr(given, name)) is not None:
                raise ValueError(f"--{name} {value}: a demo is replayed as it was recorded; give --episodes too")
        return as_recorded(demo, given.max_steps, given.render) | {"demo": demo.source}
    protocol = EvaluationProtocol(demo.game, frames_per_action=demo.frames_per_action, episodes=given.episodes)
    return from_reset(partial(OpenLoop, demo), given, protocol) | {"demo": demo.source}


def clone_settings(given: argparse.Namespace) -> dict:
    """The settings of a backbone's policy that the command line names; ValueError for one without its agent."""
    for kind in CLONES:
        if getattr(given, kind) and given.policy:
            raise ValueError(f"--{kind}, --policy: one agent plays, and a policy needs no {kind}; give one of them")
    steered = given.metacontroller or given.agent
    settings = {"greedy": given.deterministic}
    for name, needs, there in (
        ("temperature", "a backbone's; give --backbone", given.backbone or steered),
        ("switch_rate", "a metacontroller's; give --metacontroller", steered),
        ("beta_threshold", "a metacontroller's; give --metacontroller", steered),
    ):
        if (value := getattr(given, name)) is not None:
            if not there:
                raise ValueError(f"--{name.replace('_', '-')} {value}: it is {needs} too")
            settings[name.removeprefix("beta_")] = value
    return settings


def agent_plays(kind: str, make_policy: Callable[[], Policy], weights: Path, given: argparse.Namespace) -> dict:
    """An agent's episodes from reset, 20 unless told."""
    make_policy()  # a missing or damaged file is told here, not by a worker
    return from_reset(make_policy, given, EvaluationProtocol(episodes=given.episodes or 20)) | {kind: weights.name}


def from_reset(make_policy: Callable[[], Policy], given: argparse.Namespace, protocol: EvaluationProtocol) -> dict:
    """Evaluate a policy as the command line says; the first episode's clip too, if asked for."""
    asked = {"sticky": given.sticky, "first_seed": given.seed}
    protocol = replace(protocol, **{name: value for name, value in asked.items() if value is not None})
    if given.max_steps is not None:
        protocol = replace(protocol, max_frames=given.max_steps * protocol.frames_per_action)
    if given.render is not None:
        policy = make_policy()
        played, control = watch(policy, protocol.first_seed, protocol), getattr(policy, "control", None)
        write_mp4(given.render, render_steps(played) if control is None else render_codes(played, control))
    return evaluate(make_policy, protocol, given.workers or 0)


def main(argv: list[str] | None = None) -> None:
    """The command line: prints a table, or one JSON object; a wrong argument is one line and exit status 1."""
    given = parser().parse_args(argv)
    try:
        summary = play(given)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"mzlib.play: {error}")
    if given.json:
        print(json.dumps(summary))
        return
    for name in SHOWN:
        print(f"{name:>16}  {summary[name]:,.6g}")
    who = next(kind for kind in (*CLONES, "policy", "demo") if kind in summary)
    print(f"{who:>16}  {summary[who]}")
    print(f"{'protocol':>16}  " + ", ".join(f"{key} {value}" for key, value in summary["protocol"].items()))
    if given.render is not None:
        print(f"{'clip':>16}  {given.render}")


if __name__ == "__main__":
    main()

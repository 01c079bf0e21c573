"""The benchmarks run and write what they measured; no time is asserted."""

import json
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import experiments, human, reinforcement, speed, vector
from bench import internal_rl as bench_internal_rl
from bench import metacontroller as bench_metacontroller
from bench import rnd as bench_rnd
from bench import robustify as bench_robustify
from bench.durability import drill, replay_the_best
from bench.models import plain_forward, plain_scan, plain_unroll, recomputed_logits, unbound_scan
from bench.speed import main
from mzlib import agc, demos, discovery, interventions, meta, runs
from mzlib.backbone import BackboneConfig, MontezumaVLM
from mzlib.go_explore import GoExploreConfig, Search
from mzlib.internal_rl import ReinforceConfig, tasks
from mzlib.layers import linear_scan
from mzlib.meta import MetaConfig
from mzlib.metacontroller import Metacontroller, MetacontrollerConfig
from mzlib.places import GOALS
from mzlib.policies import ActorCritic, ActorCriticConfig
from mzlib.probes import SupervisedControllers


def test_the_table_and_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    monkeypatch.setattr(speed, "ROUNDS", 2)
    main(["--seconds", "0.2", "--only", "explore_domain", "--only", "emulator"])
    report = json.loads((tmp_path / "bench.json").read_text())
    results = report["results"]
    assert {"explore_efficiency_domain", "explore_steps_per_s_domain", "emulator_step_us", "frame_us"} <= results.keys()
    assert results["explore_efficiency_domain"]["reference"]
    assert all(result["value"] > 0 and result["unit"] for result in results.values())
    assert report["machine"]
    assert report["commit"]
    table = capsys.readouterr().out
    assert all(name in table for name in results)


def test_the_plain_forms_compute_the_same():
    a, b = torch.rand(2, 9, 4), torch.randn(2, 9, 4)
    assert torch.allclose(plain_scan(a, b), linear_scan(a, b), atol=1e-5)
    assert torch.allclose(unbound_scan(a, b), linear_scan(a, b), atol=1e-5)
    meta = Metacontroller(MetacontrollerConfig(residual_width=16)).eval()
    residual, lengths = torch.randn(3, 7, 16), torch.tensor([7, 3, 5])
    torch.nn.init.zeros_(meta.encoder.layers[-1].weight)
    torch.nn.init.constant_(meta.encoder.layers[-1].bias, -20.0)  # a proposal without noise to speak of
    with torch.no_grad():
        for ours, plain in zip(meta(residual, lengths), plain_forward(meta, residual, lengths), strict=True):
            assert torch.allclose(ours, plain, rtol=0.05, atol=0.05)


@torch.no_grad()
def test_the_plain_actor_critic_computes_the_same():
    policy, frames = ActorCritic(ActorCriticConfig()), torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    ours = policy.unroll(frames[None], policy.init_state(0), torch.zeros(1, 3, dtype=torch.bool))
    for a, b in zip(ours, plain_unroll(policy, frames), strict=True):
        assert torch.allclose(a[0], b, atol=1e-5)


@torch.no_grad()
def test_the_window_over_again_gives_what_the_cache_gives():
    sizes = {"width": 8, "heads": 2, "mlp_width": 8, "depth": 2, "layer": 1}
    model = MontezumaVLM(BackboneConfig(layout="seed", see_actions=True, **sizes)).eval()
    frames, previous = torch.randint(256, (2, 14, 84, 84), dtype=torch.uint8), torch.randint(18, (2, 11))
    caches = model.init_cache(2)
    for t in range(11):
        logits = model.upper_step(model.lower_step(frames[:, t : t + 4], previous[:, t], caches), caches).actions
        assert torch.allclose(recomputed_logits(model, frames[:, : t + 4], previous[:, : t + 1]), logits, atol=1e-5)


def test_the_headline_efficiency_is_that_of_downscaled_cells(tmp_path, monkeypatch):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    monkeypatch.setattr(speed, "ROUNDS", 2)
    main(["--seconds", "0.1", "--only", "explore_downscaled"])
    results = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert results["explore_efficiency"] == results["explore_efficiency_downscaled"]


def test_vector_environments_are_compared(tmp_path, monkeypatch):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    monkeypatch.setattr(vector, "ROUNDS", 2)
    monkeypatch.setattr(vector, "COUNT", 6)
    main(["--seconds", "0.4", "--only", "vecenv"])
    results = json.loads((tmp_path / "bench.json").read_text())["results"]
    for name in ("vecenv_ratio", "vecenv_whole_ratio"):
        assert len(results[name]["rounds"]) >= 2
        assert results[name]["reference"].startswith("AtariVectorEnv, 6 environments")
    assert all(result["value"] > 0 for result in results.values())


def test_option_rollouts_are_compared(monkeypatch):
    monkeypatch.setattr(bench_internal_rl, "COUNT", 4)
    monkeypatch.setattr(bench_internal_rl, "ROUNDS", 2)
    found = bench_internal_rl.rollout_efficiency(0.4, workers=1)
    assert len(found["rollout_efficiency"]["rounds"]) == 2
    assert all(result["value"] > 0 for result in found.values())


def test_acting_beside_the_emulators(monkeypatch):
    small = {"rollout": 8, "channels": (4, 8, 8), "hidden": 16, "features": 16}
    settings = bench_rnd.settings
    monkeypatch.setattr(bench_rnd, "settings", lambda **sizes: settings(**sizes | small | {"environments": 4}))
    monkeypatch.setattr(bench_rnd, "CPU_SQUARE", 64)
    found = bench_rnd.rnd_speed(0.0)
    assert {"rnd_efficiency", "rnd_flops_utilisation", "rnd_steps_per_s", "rnd_learner_steps_per_s"} <= found.keys()
    assert len(found["rnd_efficiency"]["rounds"]) == bench_rnd.ROUNDS
    assert all(result["value"] > 0 for result in found.values())


def test_the_curves_of_a_training(tmp_path, monkeypatch):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    small = {"rollout": 8, "environments": 2, "total_steps": 32, "warmup_rollouts": 1, "milestones": 2, "episodes": 2}
    small |= {"max_steps": 12, "channels": (4, 8, 8), "hidden": 16, "features": 16, "device": "cpu"}
    settings = bench_rnd.settings
    monkeypatch.setattr(bench_rnd, "settings", lambda **changes: settings(**changes | small))
    folder = bench_rnd.train(0, 1)
    assert [row["step"] for row in bench_rnd.learning_curve(0, folder)] == [16, 32]
    rooms = bench_rnd.room_curve(0, folder)
    assert {row["step"] for row in rooms} == {16, 32}
    assert {row["room"] for row in rooms if row["visited"]} == {1}
    way = bench_rnd.way_curve(0, folder)
    assert (way[0]["room"], way[-1]["step"]) == (1, 2_323)
    assert runs.read_final(folder)["steps"] == 32


def test_a_kill_leaves_no_trace(capsys):
    result = drill(GoExploreConfig(total_steps=12_000, checkpoint_every=800, workers=2), kills=3, seed=1, top=5)
    assert result["kills"] == 3
    assert set(result["by_kind"].values()) == {1}
    assert result["replayed"] in (5, 6)
    assert result["steps"] >= 12_000
    assert "the same archive in the end" in capsys.readouterr().out


def test_a_score_that_no_way_makes_is_noticed():
    config = GoExploreConfig(batch=4, explore_steps=40, workers=1)
    with Search(config) as search:
        search.advance()
        assert replay_the_best(config, search.archive, 2) >= 2
        search.archive.column("score")[-1] = 100
        with pytest.raises(RuntimeError, match="the archive says 100 points"):
            replay_the_best(config, search.archive, 2)


def test_the_archive_grows_under_the_search(monkeypatch):
    monkeypatch.setattr(speed, "ROUNDS", 1)
    with Search(GoExploreConfig(cells="downscaled", batch=4, workers=1)) as search:
        search.advance()
        before = search.archive.keys.copy()
        speed.fill(search, 3_000)
        assert len(search.archive) == len(set(search.archive.keys)) == 3_000
        assert search.archive.keys[: len(before)] == before
        search.advance()
        search.demo()
    result = speed.explore_scaling(0.1, 2, few=500, many=4_000)
    assert result["explore_scaling"]["value"] > 0
    assert {"cell_bytes", "cell_bytes_explorer", "checkpoint_s"} <= result.keys()


def test_searches_side_by_side_are_recorded_by_kind(monkeypatch):
    written = {}

    def side_by_side(workers, searches):
        for changes in searches:
            seed, future = changes["seed"], Future()
            kind = changes.get("cells", "domain") + ("+" if "selection" in changes else "")
            score = 1_000 * ("downscaled", "dynamic", "domain", "domain+").index(kind) + 100 * seed
            final = {"score": score, "rooms": seed, "steps": 10, "wall_s": 60.0 + seed, "protocol": {"sticky": 0.0}}
            future.set_result((final, [{"step": 10, "score": score, "rooms": seed, "cells": 1}]))
            yield future

    monkeypatch.setattr(experiments, "seeds_searched", side_by_side)
    monkeypatch.setattr(runs, "write_curve", lambda name, rows: written.update(curve=rows))
    monkeypatch.setattr(runs, "write_result", lambda name, records: written.update(records=records))
    records = {record["name"]: record for record in experiments.five_million(2)}
    assert [*records] == [record["name"] for record in written["records"]]
    for place, kind in enumerate(experiments.KINDS):
        found = records[f"Go-Explore: score after 5 M steps, {kind} cells (median)"]
        assert found["per_seed"] == {str(seed): 1_000 * place + 100 * seed for seed in range(3)}
        assert (found["value"], found["steps"], found["protocol"]["side by side"]) == (
            1_000 * place + 100,
            30,
            "2 searches",
        )
        shown = [(row["seed"], row["score"]) for row in written["curve"] if row["cells_kind"] == kind]
        assert shown == [(seed, 1_000 * place + 100 * seed) for seed in range(3)]


@pytest.mark.slow
def test_the_long_search_ships_its_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    shorter = {"total_steps": 40_000, "checkpoint_every": 15_000}
    monkeypatch.setattr(experiments, "HUNDRED_MILLION", experiments.HUNDRED_MILLION | shorter)
    monkeypatch.setattr(experiments, "POINTS", (100,))
    monkeypatch.setattr(runs, "data_dir", lambda *names: tmp_path / names[-1])
    curves = {}
    monkeypatch.setattr(runs, "write_curve", curves.__setitem__)
    score, rooms, steps, way = experiments.hundred_million(1)
    best, shipped = demos.load(tmp_path / "hundred_million.npz")
    assert (score["value"], score["protocol"]["way_steps"]) == (best.score, len(best)) == (100, len(best))
    assert rooms["value"] >= 1
    assert way["value"] == len(shipped)
    assert shipped.score == 100
    assert 0 < steps["value"] < score["steps"]
    assert curves["hundred_million"][-1]["score"] == 100


@pytest.mark.slow
def test_searches_run_side_by_side_and_a_finished_one_is_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    searches = [{"seed": seed, "cells": "downscaled", "total_steps": 1_000} for seed in (1, 0)]
    first, again = ([future.result()[0] for future in experiments.seeds_searched(2, searches)] for _ in range(2))
    assert [final["steps"] >= 1_000 for final in first] == [True, True]
    assert first[0]["steps"] != first[1]["steps"]
    assert again == first
    assert experiments.seconds_of({0: first[0], 1: first[1]}, 2) == max(final["wall_s"] for final in first)


def test_human_play_is_converted_as_the_plain_loop_does(tmp_path, monkeypatch):
    human.written(tmp_path / "raw", 2, steps=40)
    human.plain_convert(tmp_path / "raw", tmp_path / "plain")
    report = agc.convert(tmp_path / "raw", tmp_path / "ours", workers=1)
    assert [record.rows for record in report.converted] == [161, 161]
    for play in agc.plays(tmp_path / "ours"):
        plain = np.load(tmp_path / "plain" / play.path.name)
        assert np.array_equal(play.read()[0], plain["frames"])
        assert np.array_equal(play.actions, plain["actions"])
        assert np.array_equal(play.rewards, plain["rewards"])
    monkeypatch.setattr(human, "COPIES", 2)
    monkeypatch.setattr(human, "ROUNDS", 1)
    found = human.agc_speed(0.0, steps=40)
    assert {"agc_conversion_ratio", "agc_per_core_ratio", "agc_frames_per_s"} == found.keys()
    assert all(result["value"] > 0 for result in found.values())


def test_a_metacontroller_is_measured_on_what_nothing_has_seen(small_pair, tmp_path, monkeypatch):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    backbone, about = small_pair[0], json.loads(small_pair[0].with_suffix(".json").read_text())
    held_out = sorted({demo.seed for demo in demos.load(runs.data_dir("demos", "places", "plain.npz"))})[:6]
    backbone.with_suffix(".json").write_text(json.dumps(about | {"held_out": held_out}))
    tiny = {"backbone": str(backbone), "demos": "places", "demo_limit": 160, "seq_len": 96, "steps": 2}
    config = MetaConfig(**tiny, device="cpu", workers=1, batch_size=2, code_dim=3, controller_rank=2)
    monkeypatch.setattr(bench_metacontroller, "settings", lambda **changes: config)
    monkeypatch.setattr(bench_metacontroller, "BACKBONE", backbone)
    monkeypatch.setattr(bench_metacontroller, "STARTS", 20)
    monkeypatch.setattr(bench_metacontroller, "REACH_STEPS", 3)
    monkeypatch.setattr(bench_metacontroller, "HOLD_STEPS", 3)
    monkeypatch.setattr(bench_metacontroller, "CONTROLLERS", {"rank": 2, "steps": 1})
    monkeypatch.setattr(runs, "load_profile", lambda *_: {"meta": 0})
    with runs.Run.open("03_metacontroller", "full", config, tmp_path / "meta", quiet=True) as run:
        meta.run(config, run)
    ground = bench_metacontroller.ground()
    seeds = ground.ordinary.seeds(np.arange(len(ground.ordinary)))
    assert set(seeds.tolist()) <= set(held_out)
    assert len(ground.starts) > 5
    found = bench_metacontroller.openings(run.folder, ground)
    assert found["matches"]["events"].keys() == {"switch", "random", "even", "actions"}
    assert bench_metacontroller.supervised(ground).keys() == {"told the place", "left alone"}
    kept = set(ground.upstream.unseen.seeds(ground.evaluation).tolist())
    assert kept.isdisjoint(ground.upstream.unseen.seeds(ground.selection).tolist())
    assert {start.demo.seed for start in ground.starts} <= kept
    found = bench_metacontroller.injected(run.folder, ground)
    for injected in found.values():
        assert 0 < len(injected.source) == len(injected.steered) <= 20
    assert len(found["known"].source) <= len(found["any"].source)
    folders = {(cost, bench_metacontroller.SEEDS[0]): run.folder for cost in bench_metacontroller.COSTS}
    tried = bench_metacontroller.costs(folders, ground)
    assert [row["switch_cost"] for row in tried] == list(bench_metacontroller.COSTS)


def test_codes_are_held_where_a_walk_went_elsewhere_and_could_have_gone_there(monkeypatch):
    walks = [demo for demo in demos.load(runs.data_dir("demos", "places", "plain.npz")) if demo.seed < 40_008]
    starts = bench_metacontroller.distinct(interventions.leg_starts(walks))
    goals, ends = np.array([start.goal for start in starts]), np.array([start.step for start in starts])
    before = np.array([start.demo.goals[start.step - 1] if start.step else -1 for start in starts])
    seeds = np.array([start.demo.seed for start in starts])
    legs = discovery.Codes(np.zeros((len(starts), 2)), goals, before, goals, np.arange(len(starts)), ends, ends + 1)
    unseen = SimpleNamespace(seeds=lambda rows: seeds[rows])
    ground = SimpleNamespace(upstream=SimpleNamespace(unseen=unseen), starts=starts)
    ways = {}
    for start in starts:
        ways.setdefault(bench_metacontroller.state_of(start), set()).add(start.goal)
    found = {known: bench_metacontroller.pairs(ground, legs, known) for known in (True, False)}
    assert 10 < len(found[True]) <= len(found[False])
    for known, chosen in found.items():
        for start, leg in chosen:
            assert goals[leg] != start.goal
            assert seeds[leg] != start.demo.seed
            assert before[leg] == start.demo.goals[start.step - 1]
            assert not known or goals[leg] in ways[bench_metacontroller.state_of(start)]
    monkeypatch.setattr(bench_metacontroller, "STARTS", 3)
    assert len(bench_metacontroller.pairs(ground, legs, True)) == 3


def test_the_highest_cost_that_hardly_adds_to_nll_and_kl():
    row = {"nll_and_kl": 0.150, "open": 0.1}
    dear, shut = {"switch_cost": 0.4, "nll_and_kl": 0.156}, {"switch_cost": 0.7, "nll_and_kl": 0.13, "open": 0.04}
    tried = [row | {"switch_cost": 0.0}, row | {"switch_cost": 0.25, "nll_and_kl": 0.154}, row | dear, row | shut]
    assert bench_metacontroller.affordable(tried) == 0.25
    with pytest.raises(ValueError, match=r"shuts at all of \[0.7\]"):
        bench_metacontroller.affordable(tried[3:])


def test_reinforced_agents_are_played_from_their_weights(small_pair, tmp_path, monkeypatch):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    named = {"backbone": str(small_pair[0]), "metacontroller": str(small_pair[1])}
    sizes = {"environments": 4, "rollout": 8, "max_steps": 9, "workers": 1, "policy_width": 16, "batch": 2}
    shared = named | sizes | {"device": "cpu", "total_steps": 64, "minibatches": 2, "learning_rate": 0.1}
    monkeypatch.setattr(reinforcement, "settings", lambda **changes: ReinforceConfig(**shared | changes))
    monkeypatch.setattr(reinforcement, "EPISODES", 6)
    monkeypatch.setattr(runs.folders, "load_profile", lambda *_: shared | {"seed": 0})
    monkeypatch.setattr(runs, "data_dir", lambda *parts: tmp_path.joinpath(*parts))
    monkeypatch.setattr(reinforcement, "data_dir", lambda *parts: tmp_path.joinpath(*parts))
    curves = {}
    monkeypatch.setattr(runs, "write_curve", lambda name, rows: curves.update({name: rows}))
    (tmp_path / "weights").mkdir()
    asked, trained = {"places": (0, 1)}, {}
    monkeypatch.setattr(tasks, "STARTS", 2)
    for agent, changes in reinforcement.AGENTS.items():
        changes = changes | {name: shared[name] for name in ("rollout", "batch", "minibatches")}
        folder = reinforcement.trained({"seed": 0} | changes | asked)
        assert reinforcement.won(folder, changes | asked).shape == (6,)
        weights = next(folder.glob("*.safetensors"))
        content = weights.read_bytes()
        weights.write_bytes(content[:-1])
        with pytest.raises(ValueError, match=f"{weights.name}: not the weights"):
            reinforcement.won(folder, changes | asked)
        weights.write_bytes(content)
        trained["four places", agent] = {0: folder}
    for name, size in {"LEG_STEPS": 9, "LEG_EPISODES": 3, "CODES_TRIED": 4, "FINALISTS": 2}.items():
        monkeypatch.setattr(reinforcement, name, size)
    backbone, _ = runs.load_weights(small_pair[0], MontezumaVLM, BackboneConfig)
    told = SupervisedControllers(len(GOALS), backbone.config.width, 2)
    arrived = reinforcement.arrivals(reinforcement.Leg(0, 1), small_pair[1], told.requires_grad_(False))
    lengths = {held: len(each) for held, each in arrived.items()}
    assert lengths == {"any code": 12, "the best code": 12, "told the place": 12}
    reinforcement.write_curve("internal_rl", trained)
    reinforcement.ship(trained)
    rows = runs.read_metrics(folder / "metrics.jsonl")
    assert reinforcement.steps_to(folder, 0.0) is None, "fewer updates than are averaged over"
    monkeypatch.setattr(reinforcement, "LATEST", 1)
    assert reinforcement.steps_to(folder, 0.0) == rows[0]["environment_steps"]
    assert reinforcement.steps_to(folder, 1.1) is None
    assert {row["agent"] for row in curves["internal_rl"]} == set(reinforcement.AGENTS)
    assert (tmp_path / "weights" / "agent.safetensors").exists()


def test_a_told_controller_takes_the_place_of_codes(small_pair):
    metacontroller, _ = runs.load_weights(small_pair[1], Metacontroller, MetacontrollerConfig)
    torch.manual_seed(0)
    width, dim = metacontroller.config.residual_width, metacontroller.config.code_dim
    controllers = SupervisedControllers(len(GOALS), width, 2).requires_grad_(False)
    residual, goals = torch.randn(5, width), torch.full((5,), 3)
    told = reinforcement.Told(metacontroller, controllers, 3)
    for codes in torch.randn(2, 5, dim):
        assert torch.equal(told.hypernetwork(residual, codes), controllers(residual, goals))
    assert not torch.allclose(controllers(residual, goals), controllers(residual, goals + 1))


def test_the_legs_of_a_way():
    legs = reinforcement.legs_of((5, 4, 3, 0))
    assert legs == [(5, 4, None), (4, 3, None), (4, 3, 5), (3, 0, None), (3, 0, 4)]
    assert str(legs[2]) == "rope (come from right platform) to middle ladder, bottom"
    assert [str(leg) for leg in reinforcement.legs_of(())] == []


def test_the_record_of_a_policy_counts_every_training_that_made_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    tiny = {"environments": 4, "rollout": 16, "minibatches": 2, "epochs": 1, "demo_count": 1, "imitation": 0.1}
    first = {"total_steps": 128, "begin_with": "data/weights/policy.safetensors", **tiny}
    monkeypatch.setattr(bench_robustify, "AGENTS", {"key twice": ([first, {"total_steps": 64, **tiny}], (0,))})
    monkeypatch.setattr(bench_robustify, "EPISODES", 2)
    trial = bench_robustify.EvaluationProtocol(episodes=2, first_seed=50_000, max_frames=80)
    monkeypatch.setattr(bench_robustify, "trial", lambda goal: trial)
    curves = {}
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(runs, "write_curve", lambda name, rows: curves.update({name: rows}))
    monkeypatch.setattr(runs, "data_dir", lambda *parts: tmp_path.joinpath(*parts))
    records = {record["name"]: record for record in experiments.robustify(1)}
    record = records["Robustified, key twice: key in the first life"]
    before = json.loads((runs.REPO / "data/weights/policy.json").read_text())["environment_steps"]
    assert record["steps"] == 128 + 64
    assert record["upstream_steps"] == before
    assert record["protocol"]["what"] == "policy after 192 steps on 1 demo"
    assert record["protocol"]["begins with"] == "policy"
    about = json.loads((tmp_path / "weights" / "policy_key_twice.json").read_text())
    assert about["environment_steps"] == before + 192
    assert [row["step"] for row in curves["robustify"]] == [64, 128, 192]

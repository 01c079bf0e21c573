"""The benchmark runs and writes what it measured; no time is asserted."""

import json

from bench.speed import main


def test_the_table_and_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    main(["--seconds", "0.2", "--only", "explore_domain", "--only", "emulator"])
    results = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert {"explore_efficiency_domain", "explore_steps_per_s_domain", "step_us"} <= results.keys()
    assert all(result["value"] > 0 for result in results.values())
    table = capsys.readouterr().out
    assert all(name in table for name in results)

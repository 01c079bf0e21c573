"""Human play's files: our demos written and read again, every fault that a file can have, kills, memory, deaths."""

import gzip
import http.server
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mzlib import agc, demos
from mzlib.agc import ConversionConfig, Rejected, Source, signals
from mzlib.agc.__main__ import main
from mzlib.agc.conversion import convert_one, held_action, shifted
from mzlib.agc.files import encode
from mzlib.agc.signals import align
from mzlib.dataset import FrameCache, WindowDataset, segments, training_demos
from mzlib.demos import Demo
from mzlib.emulator import Emulator
from mzlib.runs import REPO, data_dir, in_processes

CASES = int(os.environ.get("MZ_FUZZ", 300))  # `make fuzz` asks for more


def random_demo(draw: int, steps: int = 330) -> Demo:
    """Random play that dies several times, in the end for good."""
    return demos.from_actions(np.random.default_rng(draw).integers(0, 18, steps).repeat(3)[:steps], noops=draw)


@pytest.fixture(scope="module")
def played():
    """Ways to the key and through a door, sticky ones too, and one that dies until the game is over."""
    files = ("first_key", "first_key_sticky", "first_door", "first_door_sticky")
    ways = [demo for name in files for demo in demos.load(data_dir("demos", f"{name}.npz"))[:2]]
    return [*ways, random_demo(1)]


@pytest.fixture(scope="module")
def raw(played, tmp_path_factory):
    root = tmp_path_factory.mktemp("agc") / "raw"
    for number, demo in enumerate(played):
        agc.export(demo, root, number, version=1 + number % 2)
    return root


@pytest.fixture(scope="module")
def report(raw):
    return agc.convert(raw, raw.parent / "converted", workers=2)


def packed(root, path, names=None, extra=()):
    """A .tar.gz of a folder's files."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name in names or sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()):
            tar.add(root / name, f"atari_v1/{name}")
        for entry, content in extra:
            entry.size = len(content) if entry.isreg() else 0
            tar.addfile(entry, io.BytesIO(content))
    return path


# ---- the round trip


def test_rows_and_pixels_come_back_as_the_emulator_gave_them(played, raw):
    sources, strange = agc.in_folder(raw)
    assert strange == {}
    for demo, source in zip(played, sources, strict=True):
        rows = source.rows()
        screens = source.pngs(len(rows.actions))
        assert rows.actions[:-1].tolist() == demo.actions.repeat(4).tolist()
        emulator = demos.start(replace(demo, frames_per_action=1))
        for i, action in enumerate(rows.actions[:-1].tolist()):
            if i % 7 == 0:
                assert np.array_equal(screens.rgb(i), emulator.rgb())
            assert rows.rewards[i] == emulator.step(action)
            assert rows.terminal[i] == emulator.game_over
        assert np.array_equal(screens.rgb(len(rows.actions) - 1), emulator.rgb())


def test_converted_they_are_what_a_replay_gives(played, raw, report, tmp_path):
    assert report.rejected == {}
    ours = FrameCache.build(agc.plays(raw.parent / "converted"), tmp_path / "ours", workers=1)
    true = FrameCache.build(played, tmp_path / "true", workers=1)
    for name in ("frames", "actions", "rewards", "offsets", "score"):
        assert np.array_equal(getattr(ours, name), getattr(true, name)), name
    assert ours.seed.tolist() == list(range(len(played)))
    assert (ours.positions == agc.UNKNOWN).all()
    again = FrameCache.build(agc.plays(raw.parent / "converted"), tmp_path / "ours")
    assert np.array_equal(again.frames, ours.frames)
    assert len(WindowDataset(ours, range(len(ours)), seq_len=16)) > 20


def test_deaths_are_seen_on_the_screen(tmp_path):
    deadly = [random_demo(draw, 320) for draw in (1, 2, 3)]
    for number, demo in enumerate(deadly):
        agc.export(demo, tmp_path / "raw", number)
    agc.convert(tmp_path / "raw", tmp_path / "converted", workers=1)
    ours = FrameCache.build(agc.plays(tmp_path / "converted"), tmp_path / "ours", workers=1)
    true = FrameCache.build(deadly, tmp_path / "true", workers=1)
    deaths = 0
    for i in range(3):
        found, known = segments(ours, i), segments(true, i)
        assert len(found) == len(known)
        for (begin, end), (true_begin, true_end) in zip(found, known, strict=True):
            assert abs(begin - true_begin) <= 1
            assert end in (true_end, true_end - 1), "a segment never holds a dying step"
        deaths += len(known)
    assert deaths >= 13


def test_a_screen_without_hats_is_refused(tmp_path):
    text, screens = written(9)
    dark = encode(np.zeros((210, 160, 3), np.uint8))
    record = convert_one(Source(3, text, dict.fromkeys(screens, dark)), "", tmp_path, ConversionConfig())
    assert record.reason == "screens/revenge/3: spare lives cannot be read on 3 of 3 screens"


def test_an_archive_is_read_as_its_folder_is(raw, report, tmp_path):
    names = sorted(path.relative_to(raw).as_posix() for path in raw.glob(f"screens/{agc.GAME}/[0-3]/*"))
    names += [f"trajectories/{agc.GAME}/{number}.txt" for number in range(4)]
    expected = [replace(record, key="") for record in report.records[:4]]
    for order in (names, names[::-1]):  # texts after and before the screens
        archive = packed(raw, tmp_path / "a.tar.gz", order)
        found = agc.convert(archive, tmp_path / order[0][:3], workers=1)
        assert [replace(record, key="") for record in found.records] == expected


def test_four_rows_make_a_step():
    rows = np.array([[3, 3, 4, 4], [0, 0, 0, 5], [1, 2, 3, 4], [7, 6, 6, 7], [9, 2, 9, 9]], np.uint8)
    assert held_action(rows).tolist() == [4, 0, 4, 7, 9]
    assert shifted(np.arange(5), 2).tolist() == [2, 3, 4, 0, 0]
    assert shifted(np.arange(5), -1).tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(("action", "reward"), [(0, 0), (1, 1), (-2, 0), (3, -1)])
def test_the_alignment_test_tells_the_offset(raw, action, reward):
    found = []
    for source in agc.in_folder(raw)[0][:-1]:
        rows = source.rows()
        late = rows._replace(actions=shifted(rows.actions, -action), rewards=shifted(rows.rewards, -reward))
        found.append(align(source.pngs(len(rows.actions)), late))
    alignment = agc.Alignment.of(found)
    assert (alignment.action_offset, alignment.reward_offset) == (action, reward)


def test_rows_that_are_surely_late_are_refused_until_set_right(played, raw, tmp_path, monkeypatch):
    shutil.copytree(raw, tmp_path / "late")
    for number, demo in enumerate(played):
        path = tmp_path / "late" / "trajectories" / agc.GAME / f"{number}.txt"
        lines = path.read_text().splitlines()
        late = [0, *demo.actions.repeat(4).tolist()]
        lines[2:] = [f"{line.rpartition(',')[0]},{action}" for line, action in zip(lines[2:], late, strict=True)]
        path.write_text("\n".join(line.replace(", ", ",") for line in lines))
    monkeypatch.setattr(signals, "SURE_PAIRS", 500)
    agc.convert(tmp_path / "late", tmp_path / "c", workers=1)
    with pytest.raises(ValueError, match=r"source='agc': add 1 to --action-offset; convert again"):
        agc.plays(tmp_path / "c")
    agc.convert(tmp_path / "late", tmp_path / "c", ConversionConfig(action_offset=1), workers=1)
    assert all(np.array_equal(p.actions, d.actions) for p, d in zip(agc.plays(tmp_path / "c"), played, strict=True))


def test_too_little_tells_no_offset():
    alignment = agc.Alignment.of([])
    assert (alignment.action_offset, alignment.reward_offset) == (None, None)


# ---- every fault


def written(rows: int, first: int = 0) -> tuple[bytes, dict[str, bytes]]:
    """A small trajectory: rows of walking right, the screens of a game that has just begun."""
    png = encode(Emulator().rgb())
    lines = ["db traj id : 3", "frame,reward,score,terminal,action", *(f"{i},0,0,0,3" for i in range(rows))]
    return "\n".join(lines).encode() + b"\n", {f"{i + first}.png": png for i in range(rows)}


TEXT, PNGS = written(9)
PNG = PNGS["0.png"]


def line_of(text: bytes, number: int, change) -> bytes:
    lines = text.split(b"\n")
    lines[number] = change(lines[number])
    return b"\n".join(lines)


def cell_of(text: bytes, number: int, cell: int, value: bytes) -> bytes:
    def change(line):
        cells = line.split(b",")
        cells[cell] = value
        return b",".join(cells)

    return line_of(text, number, change)


rows_ = st.integers(2, 10)  # lines of TEXT that are rows, from 0
no_number = st.sampled_from([b"NaN", b"nan", b"inf", b"", b" ", b"x", b"1e3", b"0x3", b"3.5", b"--1", b"\xff", b"1 2"])
no_number |= st.binary(max_size=6).filter(
    lambda b: b.strip(b" -0123456789") != b"" and b"\n" not in b and b"," not in b
)

text_faults = st.one_of(
    st.just(b""),
    st.just(b"\xef\xbb\xbf" + TEXT),
    st.just(TEXT.replace(b"\n", b"\r\n")),
    st.just(b"\n" + TEXT),
    st.builds(lambda cut: TEXT[:cut].removesuffix(b"\n"), st.integers(1, 70)),
    st.builds(
        lambda title: line_of(TEXT, 0, lambda _: title), st.sampled_from([b"", b"db traj id :", b"traj 3", b"3"])
    ),
    st.builds(
        lambda h: line_of(TEXT, 1, lambda _: h),
        st.sampled_from([b"", b"frame,reward,score,action,terminal", b"frame,reward,score,terminal", b"0,0,0,0,0"]),
    ),
    st.builds(lambda n, cell, value: cell_of(TEXT, n, cell, value), rows_, st.integers(0, 4), no_number),
    st.builds(lambda n, a: cell_of(TEXT, n, 4, b"%d" % a), rows_, st.integers(18, 10**6) | st.integers(-20, -1)),
    st.builds(lambda n, r: cell_of(TEXT, n, 1, b"%d" % r), st.integers(2, 9), st.integers(1, 10**6)),
    st.builds(lambda n, t: cell_of(TEXT, n, 3, b"%d" % t), rows_, st.integers(2, 99)),
    st.builds(lambda n: cell_of(TEXT, n, 3, b"1"), st.integers(2, 9)),  # play goes on after the end
    st.builds(lambda n: line_of(TEXT, n, lambda line: line + b"\n" + line), rows_),  # twice
    st.builds(lambda n: b"\n".join(x for i, x in enumerate(TEXT.split(b"\n")) if i != n), st.integers(2, 9)),  # a gap
    st.builds(
        lambda order: b"\n".join([*TEXT.split(b"\n")[:2], *(TEXT.split(b"\n")[2 + i] for i in order)]),
        st.permutations(range(9)).filter(lambda order: order != list(range(9))),
    ),
    st.builds(lambda n, more: line_of(TEXT, n, lambda line: line + more), rows_, st.sampled_from([b",0", b",", b"#"])),
)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def headed(width: int, height: int, depth: int = 8) -> bytes:
    return PNG[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)) + PNG[33:]


def flipped(png: bytes, at: int, bit: int) -> bytes:
    return png[: at % len(png)] + bytes([png[at % len(png)] ^ (1 << bit)]) + png[at % len(png) + 1 :]


png_faults = st.one_of(
    st.builds(lambda cut: PNG[:cut], st.integers(0, len(PNG) - 1)),
    st.builds(lambda at, bit: flipped(PNG, at, bit), st.integers(0, len(PNG) - 1), st.integers(0, 7)),
    st.builds(headed, st.integers(0, 2**31 - 1).filter(lambda w: w != 160), st.integers(0, 2**31 - 1)),
    st.just(headed(60_000, 60_000)),  # 10 GB
    st.just(headed(160, 210, 16)),
    st.builds(lambda more: PNG + more, st.binary(min_size=1, max_size=9)),
    st.binary(max_size=200),
)
names_faults = st.one_of(
    st.builds(lambda n: {k: v for k, v in PNGS.items() if k != f"{n}.png"}, st.integers(0, 8)),  # one is missing
    st.builds(lambda n: PNGS | {f"{n}.png": PNG}, st.integers(9, 99)),  # one too many
    st.builds(lambda by: {f"{i + by}.png": PNG for i in range(9)}, st.integers(2, 99)),
    st.builds(lambda n: {f"{i + (i >= n)}.png": PNG for i in range(9)}, st.integers(1, 8)),  # counted from 0 and from 1
    st.builds(
        lambda name: {k: v for k, v in PNGS.items() if k != "4.png"} | {name: PNG},
        st.sampled_from(
            [
                "04.png",
                "4 (1).png",
                "-4.png",
                "4.PNG",
                "four.png",
                "4.png.png",
                "+4.png",
                "٤.png",
                ".png",
                "4\n.png",
                "4�.png",
            ]
        ),
    ),
)


def refused(source: Source, folder) -> str:
    (folder / "3.npz").unlink(missing_ok=True)
    record = convert_one(source, "", folder, ConversionConfig())
    assert record.reason, "it must be rejected"
    assert "\n" not in record.reason
    assert len(record.reason) < 300
    assert list(folder.glob("*.npz")) == [], "and nothing written"
    return record.reason


each_fault = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))


@each_fault
@given(text=text_faults)
def test_malformed_texts_are_refused_with_file_and_line(tmp_path, text):
    reason = refused(Source(3, text, PNGS), tmp_path)
    assert reason.startswith(("trajectories/revenge/3.txt, line ", "screens/revenge/3: ")), reason


@each_fault
@given(png=png_faults, at=st.integers(0, 8))
def test_malformed_pngs_are_refused_with_their_name(tmp_path, png, at):
    reason = refused(Source(3, TEXT, PNGS | {f"{at}.png": png}), tmp_path)
    assert reason.startswith(f"screens/revenge/3/{at}.png: "), reason


@each_fault
@given(screens=names_faults)
def test_malformed_numbering_is_refused(tmp_path, screens):
    assert refused(Source(3, TEXT, screens), tmp_path).startswith("screens/revenge/3")


@each_fault
@given(cuts=st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 255), st.booleans()), max_size=3))
def test_whatever_a_text_says_is_refused_or_read_as_it_stands(cuts):
    text = TEXT
    for at, value, insert in cuts:
        text = text[:at] + bytes([value]) + text[at + (not insert) :]
    try:
        rows = agc.parse("a.txt", text)
    except Rejected as error:
        said = str(error)
        rows = None
    if rows is None:
        assert said.startswith("a.txt, line ")
        return
    plain = [[int(cell) for cell in line.split(b",")] for line in text.decode().encode().splitlines()[2:]]
    assert [row[0] for row in plain] == list(range(plain[0][0], plain[0][0] + len(plain)))
    assert [(row[1], row[2], row[3], row[4]) for row in plain] == [
        (int(r), int(s), int(t), int(a))
        for r, s, t, a in zip(rows.rewards, rows.score, rows.terminal, rows.actions, strict=True)
    ]


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


tar_faults = {
    "link": (entry("screens/revenge/3/9.png", tarfile.SYMTYPE, "0.png"), "a link, or no file"),
    "hard link": (entry("screens/revenge/3/9.png", tarfile.LNKTYPE, "screens/revenge/3/0.png"), "a link, or no file"),
    "device": (entry("screens/revenge/3/9.png", tarfile.CHRTYPE), "a link, or no file"),
    "upwards": (entry("../../screens/revenge/3/9.png"), "a path out of the archive"),
    "absolute": (entry("/screens/revenge/3/9.png"), "a path out of the archive"),
    "twice": (entry("screens/revenge/3/0.png"), "twice in the archive"),
    "text twice": (entry("trajectories/revenge/3.txt"), "twice in the archive"),
    "newline": (entry("screens/revenge/3/9\n.png"), "a number and .png is needed"),
    "deeper": (entry("screens/revenge/3/more/9.png"), "not where the format has files"),
}


@pytest.fixture
def small(tmp_path):
    """A folder with one good trajectory, 3, and another, 4."""
    root = tmp_path / "small"
    for number in (3, 4):
        (root / f"screens/revenge/{number}").mkdir(parents=True)
        for name, png in PNGS.items():
            (root / f"screens/revenge/{number}/{name}").write_bytes(png)
        (root / "trajectories/revenge").mkdir(parents=True, exist_ok=True)
        (root / f"trajectories/revenge/{number}.txt").write_bytes(TEXT)
    return root


SCREENS_LAST = [f"trajectories/revenge/{n}.txt" for n in (4, 3)] + [
    f"screens/revenge/{n}/{k}" for n in (4, 3) for k in PNGS
]


@pytest.mark.parametrize("fault", tar_faults)
def test_faults_of_an_archive_reject_their_trajectory_alone(small, tmp_path, fault):
    made, why = tar_faults[fault]
    archive = packed(small, tmp_path / "a.tar.gz", SCREENS_LAST, [(made, PNG)])
    before = set(tmp_path.parent.rglob("9.png"))
    report = agc.convert(archive, tmp_path / "converted", workers=1)
    assert [record.number for record in report.converted] == [4]
    assert report.rejected["3"] == f"{ascii(made.name)[1:-1]}: {why}"
    assert set(tmp_path.parent.rglob("9.png")) == before, "nothing is unpacked"


def test_an_archive_in_pieces_or_damaged_is_refused(small, tmp_path):
    scattered = [*SCREENS_LAST[:-1], "screens/revenge/4/0.png", SCREENS_LAST[-1]]
    report = agc.convert(packed(small, tmp_path / "a.tar.gz", scattered), tmp_path / "a", workers=1)
    assert [record.number for record in report.converted] == [3]
    assert "in one piece" in report.rejected["4"]
    whole = packed(small, tmp_path / "b.tar.gz").read_bytes()
    for content in (
        whole[: len(whole) // 2],
        flipped(whole, len(whole) // 2, 3),
        gzip.compress(b"no tar at all"),
        b"x",
    ):
        (tmp_path / "b.tar.gz").write_bytes(content)
        with pytest.raises(
            (ValueError, FileNotFoundError), match=r"^[^\n]*b\.tar\.gz: (damaged after|no trajectory)[^\n]*$"
        ):
            agc.convert(tmp_path / "b.tar.gz", tmp_path / "b", workers=1)


def test_a_folders_faults_are_listed(small, tmp_path):
    (small / "screens/revenge/4/0.png").unlink()
    (small / "screens/revenge/4/0.png").symlink_to(small / "screens/revenge/3/0.png")
    (small / "trajectories/revenge/9.txt").write_bytes(TEXT)
    (small / "screens/revenge/8").mkdir()
    (small / "screens/revenge/8/0.png").write_bytes(PNG)
    (small / "trajectories/revenge/notes.doc").write_text("")
    (small / "trajectories/revenge/5.txt").symlink_to(small / "trajectories/revenge/3.txt")
    report = agc.convert(small, tmp_path / "converted", workers=1)
    assert [record.number for record in report.converted] == [3]
    assert report.rejected == {
        "4": "screens/revenge/4/0.png: a link, or no file",
        "5": "trajectories/revenge/5.txt: a link",
        "8": "trajectories/revenge/8.txt: there is no such file, but screens",
        "9": "screens/revenge/9: there is no such folder",
        "trajectories/revenge/notes.doc": "trajectories/revenge/notes.doc: a number and .txt is needed",
    }
    with pytest.raises(FileNotFoundError, match="no folder trajectories/revenge"):
        agc.convert(tmp_path / "nowhere", tmp_path / "c")
    (small / "trajectories/revenge/3.txt").write_bytes(b"")
    agc.convert(small, tmp_path / "converted", workers=1)
    with pytest.raises(FileNotFoundError, match="every trajectory"):
        agc.plays(tmp_path / "converted")


# ---- kills, damage, memory


def test_a_killed_conversion_resumes(raw, report, tmp_path):
    code = "import sys; from pathlib import Path; from mzlib import agc\n"
    code += "agc.convert(Path(sys.argv[1]), Path(sys.argv[2]), workers=1)"
    process = subprocess.Popen([sys.executable, "-c", code, raw, tmp_path], cwd=REPO, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("[0-9].npz"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(FileNotFoundError, match="no finished conversion"):
        agc.report_of(tmp_path)
    index = tmp_path / "index.jsonl"
    finished = [json.loads(line)["number"] for line in index.read_text().splitlines()]
    assert finished
    index.write_text(index.read_text() + '{"number": 9, "ke')  # what a kill in mid-line leaves
    times = {number: (tmp_path / f"{number}.npz").stat().st_mtime_ns for number in finished}
    found = agc.convert(raw, tmp_path, workers=1)
    assert {n: (tmp_path / f"{n}.npz").stat().st_mtime_ns for n in finished} == times, "not done again"
    assert found == report


def test_a_damaged_file_is_noticed_and_made_again(small, tmp_path):
    agc.convert(small, tmp_path / "c", workers=1)
    path = tmp_path / "c" / "3.npz"
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, len(whole) - 400, 1))
    damaged = agc.plays(tmp_path / "c")[0]
    with pytest.raises(ValueError, match=r"^3\.npz: damaged"):
        damaged.read()
    agc.convert(small, tmp_path / "c", workers=1)
    assert path.read_bytes() == whole
    agc.convert(small, tmp_path / "c", ConversionConfig(action_offset=-4), workers=1)
    assert path.read_bytes() != whole, "other settings convert anew"
    with pytest.raises(ValueError, match="action_offset=99"):
        ConversionConfig(action_offset=99)


MEMORY = """
import resource, sys
from pathlib import Path
from mzlib import agc
if __name__ == "__main__":
    agc.convert(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)
    print(*(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""


def test_memory_does_not_grow_with_the_data(tmp_path):
    (tmp_path / "run.py").write_text(MEMORY)
    text, screens = written(61)
    peaks = []
    for count in (4, 120):
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz", compresslevel=1) as tar:
            for number in range(count):
                contents = {f"screens/revenge/{number}/{name}": png for name, png in screens.items()}
                for name, content in {**contents, f"trajectories/revenge/{number}.txt": text}.items():
                    made = entry(name)
                    made.size = len(content)
                    tar.addfile(made, io.BytesIO(content))
        command = [sys.executable, tmp_path / "run.py", tmp_path / "a.tar.gz", tmp_path / str(count)]
        environment = {**os.environ, "PYTHONPATH": str(REPO), "CI": "1"}
        told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
        peaks.append([int(word) / 1024 for word in told.split()])  # MB
    few, many = peaks
    assert many[0] < few[0] + 30
    assert many[1] < few[1] + 30
    assert many[0] + 4 * many[1] < 1_000


def slow(number: int) -> int:
    time.sleep(0.02)
    return number


def test_jobs_are_taken_as_results_are():
    taken = []

    def jobs():
        for number in range(40):
            taken.append(number)
            yield number

    results = in_processes(slow, jobs(), 2)
    assert next(results) == 0
    assert len(taken) <= 6
    assert list(results) == list(range(1, 40))


def test_a_conversion_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("MZ_AGC", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="make data-agc"):
        training_demos("shipped", "quick", source="agc")


# ---- the download


class Shop(http.server.BaseHTTPRequestHandler):
    """Serves `content`, with ranges; breaks off after `at_most` bytes of an answer."""

    content, tag, at_most = b"", "1", 10**9
    asked: list = []  # noqa: RUF012

    def do_GET(self):
        begin = 0
        if "Range" in self.headers and self.headers.get("If-Range") == self.tag:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.asked.append(begin)
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(self.content) - begin))
        self.send_header("ETag", self.tag)
        self.end_headers()
        self.wfile.write(self.content[begin : begin + self.at_most])

    def log_message(self, *_):
        pass


@pytest.fixture
def shop(small, tmp_path, monkeypatch):
    monkeypatch.setenv("MZ_AGC", str(tmp_path / "data" / "atari"))
    monkeypatch.setattr(Shop, "content", packed(small, tmp_path / "a.tar.gz").read_bytes())
    monkeypatch.setattr(Shop, "asked", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shop) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/revenge.tar.gz"
        server.shutdown()


def failed(capsys, *arguments) -> str:
    """What the command says when it fails: one line."""
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--workers", "1"])
    assert stopped.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("make data-agc: ")
    return said[-1]


def test_a_download_goes_on_and_is_converted(shop, tmp_path, monkeypatch, capsys):
    half = len(Shop.content) // 2
    monkeypatch.setattr(Shop, "at_most", half)
    assert "the same command goes on" in failed(capsys, "--url", shop)
    monkeypatch.setattr(Shop, "at_most", 10**9)
    main(["--url", shop, "--workers", "1"])
    assert Shop.asked == [0, half]
    assert "2 trajectories, 18 frames; 0 rejected" in capsys.readouterr().out
    assert (tmp_path / "data" / "atari" / "revenge.tar.gz").read_bytes() == Shop.content
    assert sorted(p.name for p in (tmp_path / "data" / "atari").iterdir()) == ["converted", "revenge.tar.gz"]
    assert [play.seed for play in training_demos("shipped", "quick", source="agc")] == [3, 4]
    main(["--url", shop, "--workers", "1"])
    assert len(Shop.asked) == 2, "nothing is fetched twice"


def test_another_file_on_the_server_is_fetched_from_its_beginning(shop, monkeypatch, capsys):
    monkeypatch.setattr(Shop, "at_most", 1_000)
    failed(capsys, "--url", shop)
    monkeypatch.setattr(Shop, "at_most", 10**9)
    monkeypatch.setattr(Shop, "tag", "2")
    main(["--url", shop, "--workers", "1"])
    assert Shop.asked == [0, 0]


def test_without_internet_one_line_and_nothing_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MZ_AGC", str(tmp_path / "data" / "atari"))
    said = failed(capsys, "--url", "http://127.0.0.1:9/revenge.tar.gz")
    assert "cannot be fetched" in said
    assert "is this machine on the internet?" in said
    assert list(tmp_path.iterdir()) == []
    assert "no folder trajectories/revenge" in failed(capsys, "--origin", str(tmp_path / "nowhere"))
    assert not (tmp_path / "data").exists()

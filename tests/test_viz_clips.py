import base64
import io
import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from mzlib.demos import Demo
from mzlib.emulator import ACTIONS
from mzlib.trajectory import Trajectory
from mzlib.viz import clips
from mzlib.viz.clips import (
    Clip,
    filmstrip,
    png_bytes,
    render_demo,
    render_trajectory,
    show_clip,
    show_wall,
    strip_frames,
    write_mp4,
)


def coloured(count=12, captions=(), height=20, width=16, scale=(4, 2), **fields):
    """A clip whose frame i is of one gray, 10 + 15 i."""
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = (10 + 15 * np.arange(count))[:, None, None, None]
    return Clip(frames, captions, scale=scale, **fields)


def walk(steps=20):
    """A demo that climbs down the first ladder."""
    return Demo(np.full(steps, ACTIONS.index("DOWN"), np.uint8), np.zeros(steps, np.int32))


def decoded(path):
    """(what ffmpeg says of the file, its frames)."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    said = next(line for line in done.stderr.decode().splitlines() if "Video: h264" in line)
    width, height = map(int, re.search(r", (\d+)x(\d+)", said).groups())
    return said, np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)


def test_mp4_decodes_to_the_clip(tmp_path):
    clip = coloured(12)
    said, frames = decoded(write_mp4(tmp_path / "clip.mp4", clip))
    assert "yuv420p" in said
    assert "15 fps" in said
    assert frames.shape == (12, 40, 64, 3)
    pictures = np.array([clip.picture(i) for i in range(len(clip))])
    assert np.abs(frames.astype(int) - pictures).max() <= 6


def test_mp4_starts_with_its_index_and_pads_odd_sizes(tmp_path):
    path = write_mp4(tmp_path / "odd.mp4", coloured(5, height=21, width=15, scale=(1, 1)))
    content = path.read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")
    assert decoded(path)[1].shape == (5, 22, 16, 3)


def test_a_failed_mp4_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")

    def broken(self, i):
        if i == 3:
            raise RuntimeError("the renderer broke")
        return np.zeros((40, 64, 3), np.uint8)

    monkeypatch.setattr(Clip, "picture", broken)
    with pytest.raises(RuntimeError, match="renderer broke"):
        write_mp4(path, coloured())
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_pixels_are_enlarged_without_blur():
    frame = np.arange(20 * 16 * 3, dtype=np.uint8).reshape(1, 20, 16, 3)
    picture = Clip(frame).picture(0)
    assert picture.shape == (40, 64, 3)
    for row in range(2):
        for column in range(4):
            assert np.array_equal(picture[row::2, column::4], frame[0])


def test_captions_change_the_strip_and_only_the_strip():
    one = coloured(2, ("step 0", "step 0"), height=210, width=160)
    other = coloured(2, ("step 0", "step 1"), height=210, width=160)
    assert one.size == other.size == other.picture(1).shape[1::-1]
    assert np.array_equal(one.picture(0), other.picture(0))
    changed = (one.picture(1) != other.picture(1)).any(axis=(1, 2))
    assert changed.any()
    assert not changed[: 210 * 2].any()


def test_a_long_caption_is_shrunk_to_fit():
    strip = clips._caption_strip("a very long caption " * 4, 640, 26)
    assert (strip[:, -8:] == clips.STRIP_COLOUR).all()
    assert (strip != clips.STRIP_COLOUR).any()


def test_the_filmstrip_shows_the_chosen_frames():
    clip = coloured(12)
    sheet = filmstrip(clip, n=4, columns=2, gap=6)
    assert sheet.shape == (2 * 20 + 6, 2 * 32 + 6, 3)
    shown = [sheet[5, 5, 0], sheet[5, -5, 0], sheet[-5, 5, 0], sheet[-5, -5, 0]]
    assert shown == [10 + 15 * i for i in (0, 4, 7, 11)]
    assert (sheet[22] == 255).all()


def test_the_filmstrip_prefers_frames_with_a_reward():
    rewards = np.zeros(101, np.int64)
    rewards[[42, 60]] = 100
    clip = Clip(np.zeros((101, 4, 4, 3), np.uint8), rewards=rewards)
    assert strip_frames(clip, n=5) == [0, 25, 42, 75, 100]
    assert strip_frames(clip, n=11) == [0, 10, 20, 30, 42, 50, 60, 70, 80, 90, 100]
    clip = Clip(np.zeros((6, 4, 4, 3), np.uint8), steps=np.array([0, 10, 20, 30, 40, 43]))
    assert strip_frames(clip, at=[0, 19, 43]) == [0, 2, 5]


def test_a_short_clip_is_shown_whole():
    assert strip_frames(coloured(3), n=8) == [0, 1, 2]


def test_a_demo_is_rendered_with_every_nth_step_and_the_last():
    whole, some = render_demo(walk(20)), render_demo(walk(20), every=6)
    assert whole.steps.tolist() == list(range(20))
    assert some.steps.tolist() == [0, 6, 12, 18, 19]
    assert np.array_equal(some.frames, whole.frames[some.steps])
    assert whole.fps == 15
    assert some.fps == 2.5
    assert whole.frames.shape == (20, 210, 160, 3)
    assert whole.size[0] / (210 * whole.scale[1]) == pytest.approx(4 / 3, rel=0.2)
    assert whole.facts[-1].y < whole.facts[0].y
    assert whole.captions[7].split() == ["step", "7", "score", "0", "room", "1", "DOWN"]
    assert render_demo(walk(3), caption=None).captions == ()
    assert render_demo(walk(3), caption=lambda e, step, action, score: f"at {step}").captions[2] == "at 2"


def test_rewards_between_kept_frames_are_summed():
    class Still:
        game, frames_per_action = "pitfall", 4

        def rgb(self):
            return np.zeros((210, 160, 3), np.uint8)

    played = [(Still(), 0, reward) for reward in (0, 100, 0, 300, 0)]
    clip = clips.render_steps(played, every=2)
    assert clip.rewards.tolist() == [0, 100, 300]
    assert clip.reward_frames().tolist() == [1, 2]
    assert [caption.split()[3] for caption in clip.captions] == ["0", "100", "400"]


def test_a_trajectory_is_rendered_from_its_gray_frames():
    frames = np.zeros((5, 84, 84), np.uint8)
    frames[:, 0, 0] = range(5)
    rewards = np.array([0, 100, 0, 0, 0], np.float32)
    trajectory = Trajectory(np.zeros(5, np.uint8), rewards, frames, np.ones(5, np.uint8), "test")
    clip = render_trajectory(trajectory, every=3)
    assert clip.frames[:, 0, 0].tolist() == [[0] * 3, [3] * 3, [4] * 3]
    assert clip.rewards.tolist() == [0, 100, 0]
    assert "score 100" in clip.captions[1]


@pytest.mark.parametrize("colours", [256, 16])
def test_png_keeps_few_colours_exactly(colours):
    picture = np.random.default_rng(0).integers(0, 16, (40, 30, 1)) * np.array([15, 7, 3])
    content = png_bytes(picture.astype(np.uint8), colours)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), picture)


def test_png_reduces_many_colours():
    picture = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    assert len(Image.open(io.BytesIO(png_bytes(picture, 16))).getcolors()) <= 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": np.zeros((2, 4, 4), np.uint8)}, "frames is uint8"),
        ({"frames": np.zeros((0, 4, 4, 3), np.uint8)}, "T > 0"),
        ({"frames": np.zeros((2, 4, 4, 3), np.float32)}, "float32"),
        ({"captions": ("one",)}, "captions has 1 entries for 2 frames"),
        ({"rewards": np.zeros(3)}, "rewards has 3"),
        ({"scale": (0, 1)}, "scale"),
    ],
)
def test_a_wrong_clip_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Clip(**{"frames": np.zeros((2, 4, 4, 3), np.uint8), **fields})


def test_a_notebook_gets_video_and_filmstrip_within_budget(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    show_clip(render_demo(walk(130)), 'Down the "ladder"')
    video, strip = shown
    assert "<video controls loop muted" in video.data
    assert 'aria-label="Down the &quot;ladder&quot;"' in video.data
    assert len(video.data) < 150_000
    data, metadata = strip._repr_png_()
    assert len(data) < 120_000 * 3 / 4
    assert metadata["alt"].startswith('Down the "ladder" Filmstrip, steps 0, 18,')


def test_a_wall_of_clips(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    long, short = render_demo(walk(12)), render_demo(walk(2))
    show_wall({"down & out": long, "for two steps": short})
    tiles, rows = shown
    assert tiles.data.count("<video controls loop muted") == 2
    assert "<figcaption>down &amp; out</figcaption>" in tiles.data
    data, metadata = rows._repr_png_()
    assert metadata["alt"].endswith("in the same order: down & out; for two steps.")
    height, width = filmstrip(long, 4, columns=4).shape[:2]
    assert filmstrip(short, 4, columns=4).shape[1] < width
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.size == (width, 2 * (height + 8))

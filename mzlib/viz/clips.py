"""Clips: replays as pictures with captions, written as mp4 and shown in notebooks with a filmstrip beneath.

clip = render_demo(demo)
write_mp4("runs/first_key.mp4", clip)
show_clip(clip, alt="The player climbs down, jumps the skull and takes the key.")
"""

import base64
import functools
import html
import io
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mzlib.demos import Demo, replay
from mzlib.emulator import ACTIONS, Emulator, Facts
from mzlib.runs import atomic_path
from mzlib.trajectory import Trajectory

FRAME_RATE = 60  # emulator frames a second
ATARI_SCALE = (4, 2)  # a television stretched the 160 x 210 pixels to about 4:3, so a pixel is twice as wide as high
GRAY_SCALE = (6, 4)  # the same picture from its 84 x 84 form
STRIP_COLOUR, STRIP_TEXT = (24, 24, 24), (235, 235, 235)

Caption = Callable[[Emulator, int, int, int], str]  # (emulator, step, action, score so far) -> text


@dataclass(frozen=True)
class Clip:
    """T pictures with what each shows; `len(clip)` is T, `clip.picture(i)` the i-th enlarged, its caption beneath.

    Raises ValueError for frames of another shape or type, or a per-frame field of another length.
    """

    frames: np.ndarray  # (T, H, W, 3) uint8 RGB, one pixel per screen pixel
    captions: tuple[str, ...] = ()  # T texts, or none
    fps: float = 15.0  # frames a second at the game's own speed
    scale: tuple[int, int] = ATARI_SCALE  # columns and rows that one pixel becomes
    steps: np.ndarray | None = (
        None  # (T,) the environment step after which each picture was taken; 0..T-1 when left out
    )
    rewards: np.ndarray | None = None  # (T,) points won since the picture before; zeros when left out
    facts: tuple[Facts, ...] = ()  # T readings of Montezuma's memory, or none

    def __post_init__(self):
        shape, count = self.frames.shape, len(self.frames)
        if self.frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or count == 0:
            raise ValueError(f"frames is {self.frames.dtype} {shape}; uint8 (T, H, W, 3) with T > 0 is needed")
        if self.steps is None:
            object.__setattr__(self, "steps", np.arange(count))
        if self.rewards is None:
            object.__setattr__(self, "rewards", np.zeros(count, np.int64))
        for name in ("captions", "steps", "rewards", "facts"):
            length = len(getattr(self, name))
            if length != count and not (length == 0 and name in ("captions", "facts")):
                raise ValueError(f"{name} has {length} entries for {count} frames")
        if min(self.scale) < 1 or self.fps <= 0:
            raise ValueError(f"scale={self.scale}, fps={self.fps}: both must be positive")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of a picture in pixels, its caption included."""
        height, width = self.frames.shape[1:3]
        return width * self.scale[0], height * self.scale[1] + self._strip_height

    @property
    def _strip_height(self) -> int:
        return 2 * round(self.frames.shape[1] * self.scale[1] / 32) if self.captions else 0

    def picture(self, i: int) -> np.ndarray:
        """(height, width, 3) uint8: frame i enlarged without blur, its caption in a strip beneath."""
        enlarged = self.frames[i].repeat(self.scale[1], axis=0).repeat(self.scale[0], axis=1)
        if not self.captions:
            return enlarged
        strip = _caption_strip(self.captions[i], enlarged.shape[1], self._strip_height)
        return np.concatenate([enlarged, strip])

    def reward_frames(self) -> np.ndarray:
        """Indices of the pictures in which points have just been won."""
        return np.flatnonzero(self.rewards)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSansMono.ttf")), size)


def _caption_strip(text: str, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: the text in one line, made smaller until it fits."""
    strip = Image.new("RGB", (width, height), STRIP_COLOUR)
    size, margin = round(height * 0.7), height // 3
    while size > 6 and _font(size).getlength(text) > width - 2 * margin:
        size -= 1
    ImageDraw.Draw(strip).text((margin, height / 2), text, STRIP_TEXT, _font(size), anchor="lm")
    return np.asarray(strip)


def play_caption(emulator: Emulator, step: int, action: int, score: int) -> str:
    """The usual caption: step, score, Montezuma's room, action. In columns, so that it does not jitter."""
    room = f"room {emulator.facts.room:<3}" if emulator.game == "montezuma_revenge" else ""
    return f"step {step:<5} score {score:<6} {room} {ACTIONS[action]}"


def render_steps(
    played: Iterable[tuple[Emulator, int, int]],
    every: int = 1,
    scale: tuple[int, int] = ATARI_SCALE,
    caption: Caption | None = play_caption,
) -> Clip:
    """A clip of play under way.

    played: (emulator, action, reward) after each step, as `demos.replay` yields them. every: keep each `every`-th step,
    and the last. caption: text from (emulator, step, action, score); None for pictures without a strip.
    """
    if every < 1:
        raise ValueError(f"every={every}: at least 1 is needed")
    frames, captions, steps, rewards, facts = [], [], [], [], []
    score = unshown = 0

    def keep():
        nonlocal unshown
        frames.append(emulator.rgb().copy())
        steps.append(step)
        rewards.append(unshown)
        unshown = 0
        if caption:
            captions.append(caption(emulator, step, action, score))
        if emulator.game == "montezuma_revenge":
            facts.append(emulator.facts)

    step = -1
    for step, (emulator, action, reward) in enumerate(played):  # noqa: B007
        score += reward
        unshown += reward
        if step % every == 0:
            keep()
    if step < 0:
        raise ValueError("nothing was played: a clip has at least one step")
    if step % every:
        keep()
    rate = FRAME_RATE / (emulator.frames_per_action * every)
    return Clip(np.array(frames), tuple(captions), rate, scale, np.array(steps), np.array(rewards), tuple(facts))


def render_demo(
    demo: Demo, every: int = 1, scale: tuple[int, int] = ATARI_SCALE, caption: Caption | None = play_caption
) -> Clip:
    """Replay a demo into a clip; see `render_steps`."""
    return render_steps(replay(demo), every, scale, caption)


def render_trajectory(trajectory: Trajectory, every: int = 1, scale: tuple[int, int] = GRAY_SCALE) -> Clip:
    """A clip of what a model sees: the trajectory's gray 84 x 84 frames, captioned with step, score and action."""
    score = np.cumsum(trajectory.rewards, dtype=np.float64)
    kept = np.unique(np.append(np.arange(0, len(trajectory), every), len(trajectory) - 1))
    captions = (f"step {t:<5} score {score[t]:<6.0f} {ACTIONS[trajectory.actions[t]]}" for t in kept)
    rate = FRAME_RATE / (trajectory.frames_per_action * every)
    gray = np.repeat(trajectory.frames[kept, ..., None], 3, axis=3)
    return Clip(gray, tuple(captions), rate, scale, kept, np.diff(score[kept], prepend=0))


def write_mp4(path: Path | str, clip: Clip, quality: int = 22, speed: float = 1.0) -> Path:
    """Write the clip as H.264 that every browser plays; either the whole file appears or none.

    quality: x264's constant rate factor, smaller is better and larger. speed: times the game's own speed.
    """
    width, height = clip.size
    even = (width + width % 2, height + height % 2)  # 4:2:0 colour needs even sizes
    options = ["-crf", str(quality), "-preset", "veryslow", "-tune", "animation", "-movflags", "+faststart"]
    with atomic_path(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            even,
            fps=clip.fps * speed,
            codec="libx264",
            pix_fmt_out="yuv420p",
            quality=None,
            macro_block_size=1,
            ffmpeg_log_level="error",
            output_params=options,
            ffmpeg_timeout=60,
        )
        writer.send(None)
        try:
            for i in range(len(clip)):
                picture = clip.picture(i)
                padding = ((0, even[1] - height), (0, even[0] - width), (0, 0))
                writer.send(np.ascontiguousarray(np.pad(picture, padding)))
        finally:
            writer.close()
    return Path(path)


def mp4_bytes(clip: Clip, quality: int = 22, speed: float = 1.0) -> bytes:
    """The clip as the bytes of an mp4 file."""
    with tempfile.TemporaryDirectory() as folder:
        return write_mp4(Path(folder, "clip.mp4"), clip, quality, speed).read_bytes()


def strip_frames(clip: Clip, n: int = 8, at: Sequence[int] | None = None) -> list[int]:
    """Indices of the frames that a filmstrip shows: those nearest to the steps `at`, else `n` evenly spaced.

    The first and the last are among them; others move to a frame with a reward within half the spacing.
    """
    if at is not None:
        return [int(np.abs(clip.steps - step).argmin()) for step in at]
    if n < 1:
        raise ValueError(f"n={n}: a filmstrip has at least 1 frame")
    even = np.linspace(0, len(clip) - 1, min(n, len(clip))).round().astype(int)
    if len(even) == len(clip) or n < 3:
        return even.tolist()
    spacing = (len(clip) - 1) / (n - 1)
    for reward in clip.reward_frames():
        nearest = int(np.abs(even - reward).argmin())
        if (
            0 < nearest < len(even) - 1
            and abs(even[nearest] - reward) <= spacing / 2
            and not clip.rewards[even[nearest]]
        ):
            even[nearest] = reward
    return even.tolist()


def filmstrip(clip: Clip, n: int = 8, at: Sequence[int] | None = None, columns: int = 4, gap: int = 6) -> np.ndarray:
    """(height, width, 3) uint8: pictures of the clip side by side, in reading order on white.

    n: how many, evenly spaced; at: at these steps instead; columns: how many side by side.
    """
    chosen = strip_frames(clip, n, at)
    pictures = [_at_half_size(clip).picture(i) for i in chosen]
    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        y, x = (place // columns) * (height + gap), (place % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = picture
    return sheet


def _at_half_size(clip: Clip) -> Clip:
    scale = (max(1, clip.scale[0] // 2), max(1, clip.scale[1] // 2))
    return Clip(clip.frames, clip.captions, clip.fps, scale, clip.steps, clip.rewards, clip.facts)


def png_bytes(picture: np.ndarray, colours: int = 256) -> bytes:
    """An RGB picture as the smallest PNG that keeps at most `colours` colours (all of them where they are no more)."""
    codes = picture.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    used = np.unique(codes)
    if len(used) <= colours:
        image = Image.fromarray(np.searchsorted(used, codes).astype(np.uint8))
        image.putpalette(np.stack([used >> 16, used >> 8, used], axis=1).astype(np.uint8).tobytes())
    else:
        image = Image.fromarray(picture).quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """`content` as a data: address of MIME type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def show_clip(clip: Clip, alt: str, n: int = 8, at: Sequence[int] | None = None, speed: float = 1.0) -> None:
    """Display the clip in a notebook: an mp4 to play, and under it a filmstrip for viewers that drop video.

    alt: what the clip shows, in words, for both. n, at: the filmstrip's frames. speed: times the game's own speed.
    """
    from IPython.display import HTML, display

    display(HTML(_video(clip, alt, speed)))
    show_filmstrip(clip, alt, n, at)


def _video(clip: Clip, alt: str, speed: float) -> str:
    source, label = data_uri(mp4_bytes(clip, speed=speed), "video/mp4"), html.escape(alt, quote=True)
    style = f"width:100%;max-width:{clip.size[0] * 3 // 4}px;height:auto"
    return f'<video controls loop muted playsinline style="{style}" aria-label="{label}" src="{source}">{label}</video>'


def show_wall(clips: Mapping[str, Clip], speed: float = 1.0, n: int = 4) -> None:
    """Display clips side by side under their names, to play; and under them, for viewers that drop video, a row of `n`
    pictures of each."""
    from IPython.display import HTML, display
    from IPython.display import Image as Png

    tiles = "".join(
        f'<figure style="margin:0"><figcaption>{html.escape(name)}</figcaption>{_video(clip, name, speed)}</figure>'
        for name, clip in clips.items()
    )
    columns = "repeat(auto-fit,minmax(min(100%,300px),1fr))"
    display(HTML(f'<div style="display:grid;grid-template-columns:{columns};gap:12px;max-width:800px">{tiles}</div>'))
    rows = [filmstrip(clip, n, columns=n) for clip in clips.values()]
    widest = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 8), (0, widest - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    alt = "A row of pictures of each, in the same order: " + "; ".join(clips) + "."
    display(Png(png_bytes(np.concatenate(rows), 32), alt=alt))


def show_filmstrip(clip: Clip, alt: str, n: int = 8, at: Sequence[int] | None = None) -> None:
    """Display the filmstrip alone, as a PNG with alternative text."""
    from IPython.display import Image as Png
    from IPython.display import display

    steps = ", ".join(str(clip.steps[i]) for i in strip_frames(clip, n, at))
    display(Png(png_bytes(filmstrip(clip, n, at), 32), alt=f"{alt} Filmstrip, steps {steps}."))

"""Steering: hold a code for some steps from a point of the β viewer, and watch the branch beside the original.

    panel = SteeringPanel(viewer, branch)

Running a branch takes the model, so unlike the viewer this is an ipywidget and needs a running kernel. In a page it
follows the viewer's trajectory and step.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import ipywidgets
import numpy as np
import traitlets

from mzlib.viz.beta_viewer import FPS, BetaViewer
from mzlib.viz.clips import Clip
from mzlib.viz.segments import map_path
from mzlib.viz.widgets import ReplayScrubber

PRIOR = -1  # the choice of a code drawn from the prior


class Branch(NamedTuple):
    """What happened from a step on when a code was held: N pictures, each after an action, and where the player was."""

    frames: np.ndarray  # (N, H, W, 3) or (N, H, W) uint8, of the trajectory's own size
    positions: np.ndarray  # (N, 3) int: room, x, y


Steer = Callable[[int, int, np.ndarray, int], Branch]  # (trajectory, step, code (n_z,), steps) -> Branch
Prior = Callable[[np.random.Generator, int], np.ndarray]  # (generator, n_z) -> code (n_z,)


def standard_normal(rng: np.random.Generator, width: int) -> np.ndarray:
    """The metacontroller's prior: N(0, I)."""
    return rng.standard_normal(width)


class SteeringPanel(ipywidgets.VBox):
    """Choose a code, run it for some steps from the viewer's trajectory and step, watch it beside the original.

    branch: runs the model; see `Steer`. A cluster's code is that of the segment nearest to its centre; another comes
    from `prior`. The fields `trajectory`, `step`, `source` (a cluster's number, or PRIOR) and `steps` hold the state in
    `value` and can be observed; so can `result`, the scrubber shown last. Needs a running kernel.
    """

    result = traitlets.Instance(ReplayScrubber, allow_none=True)
    code = traitlets.Instance(np.ndarray, allow_none=True)

    def __init__(
        self, viewer: BetaViewer, branch: Steer, steps: int = 40, seed: int = 0, prior: Prior = standard_normal
    ):
        self.viewer, self.branch, self.prior = viewer, branch, prior
        self._rng = np.random.default_rng(seed)
        longest, count = max(map(len, viewer.traces)), len(viewer.clusters.examples)
        number = {"layout": {"width": "11em"}, "style": {"description_width": "5.5em"}}
        self.trajectory = ipywidgets.BoundedIntText(viewer.shown, 0, len(viewer.traces) - 1, description="trajectory")
        self.step = ipywidgets.BoundedIntText(viewer.start, 0, longest - 1, description="from step")
        sources = [*((f"cluster {i}", i) for i in range(count)), ("a draw from the prior", PRIOR)]
        self.source = ipywidgets.Dropdown(options=sources, description="code", layout={"width": "18em"})
        self.steps = ipywidgets.BoundedIntText(steps, 1, 1000, description="steps")
        for field in (self.trajectory, self.step, self.steps):
            field.layout, field.style = number["layout"], number["style"]
        self.source.style = {"description_width": "3em"}
        self.button = ipywidgets.Button(description="Run the branch", button_style="primary")
        self.button.on_click(self._clicked)
        self.shown = ipywidgets.Output()
        fields = [self.trajectory, self.step, self.source, self.steps, self.button]
        row = ipywidgets.HBox(fields, layout={"flex_flow": "row wrap"})
        super().__init__([row, self.shown])
        self.add_class(viewer.link)

    def __repr__(self) -> str:  # what a page without a kernel shows
        return "SteeringPanel: open the notebook in JupyterLab and run it to steer"

    def _clicked(self, _) -> None:
        self.shown.outputs = ()
        with self.shown:  # where an error of `branch` appears
            scrubber = self.steer()
            html = {"text/html": scrubber.to_html(), "text/plain": scrubber.alt}
            self.shown.outputs = ({"output_type": "display_data", "data": html, "metadata": {}},)

    def steer(self) -> ReplayScrubber:
        """Run the branch that the fields describe; the scrubber shows it beside the original, and both ways on the
        map. Its `still()` is the static figure. ValueError for a branch of another size than the frames."""
        viewer, source, steps = self.viewer, self.source.value, self.steps.value
        trace = viewer.traces[self.trajectory.value]
        step = min(self.step.value, len(trace) - 1)
        width = trace.codes.shape[1]
        self.code = self.prior(self._rng, width) if source == PRIOR else viewer.clusters.examples[source]
        branch = self.branch(self.trajectory.value, step, self.code, steps)
        frames, positions = np.asarray(branch.frames), np.asarray(branch.positions)
        if frames.shape[1:] != trace.frames.shape[1:] or len(frames) == 0 or positions.shape != (len(frames), 3):
            raise ValueError(
                f"the branch has frames {frames.shape} and positions {positions.shape}; "
                f"(N, {', '.join(map(str, trace.frames.shape[1:]))}) and (N, 3) with N > 0 are needed"
            )
        called = "a code from the prior" if source == PRIOR else f"cluster {source}"
        self.result = side_by_side(viewer, self.trajectory.value, step, Branch(frames, positions), called)
        return self.result


def side_by_side(viewer: BetaViewer, trajectory: int, step: int, branch: Branch, called: str) -> ReplayScrubber:
    """The original from `step` on and the branch next to it, or beneath it where the map is higher than wide; on the
    map the original's way white, the branch's blue. Where the original has ended its last picture stays.
    """
    trace, count = viewer.traces[trajectory], len(branch.frames)
    own = np.minimum(step + 1 + np.arange(count), len(trace) - 1)
    gray = branch.frames.ndim == 3
    other = np.repeat(branch.frames[..., None], 3, axis=3) if gray else branch.frames
    high = viewer.room_map.picture.shape[0] > viewer.room_map.picture.shape[1]
    axis, first, second = (1, "above", "below") if high else (2, "left", "right")
    gap = np.full_like(other, 255).take(range(4), axis)
    frames = np.concatenate([trace.rgb[own], gap, other], axis)
    captions = tuple(
        f"step {step} + {i + 1}   {first}: as it went{' (ended)' * bool(step + 1 + i > own[i])}   {second}: {called}"
        for i in range(count)
    )
    picture = (viewer.room_map.picture * 0.55).astype(np.uint8)
    points = map_path(viewer.room_map, np.asarray(trace.positions)[step : own[-1] + 1])
    thick = max(1, round(picture.shape[1] / 220))
    for a, b in zip(points[:-1], points[1:], strict=True):
        if np.isfinite(a + b).all():
            cv2.line(picture, *(tuple(map(int, end.round())) for end in (a, b)), (255, 255, 255), thick, cv2.LINE_AA)
    clip = Clip(frames, captions, FPS, viewer.scale, step + 1 + np.arange(count))
    alt = f"{trace.name} from step {step}: as it went ({first}, white way) and under {called} ({second}, blue way)."
    return ReplayScrubber(
        clip, alt, picture, map_path(viewer.room_map, branch.positions), start=step + 1, n=4 if high else 3
    )

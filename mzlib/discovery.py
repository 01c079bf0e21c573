"""What a metacontroller found: run over the data, its openings beside true changes of goal and events, what its codes
tell of goals and places."""

from typing import NamedTuple

import numpy as np
import torch

from mzlib import segments
from mzlib.backbone import MontezumaVLM
from mzlib.backbone.residuals import Sequences, action_logits
from mzlib.metacontroller import Metacontroller

OPEN = 0.5  # β above which the switch counts as open


class Played(NamedTuple):
    """What a metacontroller made of sequences, all padded to the same length; per step (n, t)."""

    rows: np.ndarray  # (n,) windows
    valid: np.ndarray
    actions: np.ndarray
    goals: np.ndarray
    positions: np.ndarray  # (n, t, 3)
    switch: np.ndarray  # β
    code: np.ndarray  # z (n, t, n_z)
    kl: np.ndarray
    nll: np.ndarray  # −ln p(a_t) with the posterior's codes
    prior_nll: np.ndarray  # with codes from the prior, causally: a new one whenever the switch opens
    backbone_nll: np.ndarray  # without codes


@torch.no_grad()
def play_through(
    backbone: MontezumaVLM, metacontroller: Metacontroller, sequences: Sequences, rows: np.ndarray, size: int = 32
) -> Played:
    """Run the metacontroller over these windows of the data."""
    training, device = metacontroller.training, backbone.device
    metacontroller.eval()
    parts = []
    for some in np.array_split(rows, range(size, len(rows), size)):
        batch = sequences.batch(some, device)
        e = batch.residual
        posterior = metacontroller(e, batch.lengths)
        drawn = torch.randn(*e.shape[:2], metacontroller.config.code_dim, device=device)
        prior = metacontroller.follow(e, drawn)
        nll = [
            -action_logits(backbone, batch.stream, stream)
            .log_softmax(-1)
            .gather(-1, batch.actions.clamp(max=backbone.config.actions - 1)[..., None])[..., 0]
            for stream in (posterior.residual, prior.residual, e)
        ]
        steps = (batch.valid, batch.actions, batch.goals, batch.positions, posterior.switch, posterior.code)
        parts.append([some, *(x.cpu().numpy() for x in (*steps, posterior.kl, *nll))])
    metacontroller.train(training)
    longest = sequences.windows.seq_len
    padded = []
    for name, arrays in zip(Played._fields, zip(*parts, strict=True), strict=True):
        if name != "rows":
            fill = -1 if name in ("goals", "positions") else 0
            widths = [((0, 0), (0, longest - a.shape[1])) + ((0, 0),) * (a.ndim - 2) for a in arrays]
            arrays = [np.pad(a, w, constant_values=fill) for a, w in zip(arrays, widths, strict=True)]
        padded.append(np.concatenate(arrays))
    return Played(*padded)


def later_steps(flags: np.ndarray) -> np.ndarray:
    """(n, t) bool: where flags (n, t) hold here and a step before."""
    found = np.zeros(flags.shape, bool)
    found[:, 1:] = flags[:, 1:] & flags[:, :-1]
    return found


def action_changes(played: Played) -> np.ndarray:
    """(n, t) bool: where the action is another than the last."""
    changed = np.zeros(played.actions.shape, bool)
    changed[:, 1:] = played.actions[:, 1:] != played.actions[:, :-1]
    return changed


def match(played: Played, sequences: Sequences) -> dict[str, dict]:
    """`segments.compare` of the switch's openings with the changes of goal, inside and between legs only."""
    true, allowed = segments.goal_changes(played.goals)
    groups = sequences.seeds(played.rows)
    return segments.compare(played.switch > OPEN, true, allowed, action_changes(played), groups)


def match_events(played: Played, sequences: Sequences) -> dict[str, dict]:
    """`segments.compare` of the openings with what happens to her (`segments.events`), in demos that name no goals.

    ValueError if all do.
    """
    ordinary = (played.goals < 0).all(1)
    if not ordinary.any():
        raise ValueError("every sequence names goals: give ordinary demos, such as data/demos/first_key.npz")
    valid, true = played.valid.astype(bool)[ordinary], np.zeros((ordinary.sum(), played.valid.shape[1]), bool)
    for row, (window, there) in enumerate(zip(played.rows[ordinary], valid, strict=True)):
        steps = sequences.steps([window])[0][0]
        cache = sequences.windows.cache
        true[row, there] = segments.events(cache.positions[steps], cache.rewards[steps])
    groups = sequences.seeds(played.rows[ordinary])
    opened, changed = played.switch[ordinary] > OPEN, action_changes(played)[ordinary]
    return segments.compare(opened, true, later_steps(valid), changed, groups)


def look(played: Played, sequences: Sequences) -> dict[str, float]:
    """The headline numbers: nats a step, KL also a sequence; β's sharpness; openings against changes of goal; F1 and
    its controls'."""
    valid = played.valid.astype(bool)
    found = {name: float(getattr(played, name)[valid].mean()) for name in ("nll", "prior_nll", "backbone_nll", "kl")}
    beta = played.switch[later_steps(valid)]  # at the first step it is 1 in any case
    true, allowed = segments.goal_changes(played.goals)
    matches = match(played, sequences)
    return found | {
        "nll_and_kl": found["nll"] + found["kl"],
        "kl_sequence": float((played.kl * valid).sum(1).mean()),
        "sharp": float(((beta < 0.1) | (beta > 0.9)).mean()),
        "open": float((beta > OPEN).mean()),
        "switches": float((allowed & (played.switch > OPEN)).sum(1).mean()),
        "changes": float(true.sum(1).mean()),
        **{name: matches["switch"][name] for name in ("precision", "recall", "f1")},
        **{f"f1_{name}": matches[name]["f1"] for name in segments.CONTROLS},
    }


class Codes(NamedTuple):
    """One code a segment or leg, where it was in force and what it was for."""

    code: np.ndarray  # (m, n_z) at its last step
    goal: np.ndarray  # (m,) of that step, -1 unknown
    before: np.ndarray  # (m,) the goal before that one, -1 unknown
    region: np.ndarray  # (m,) an index into places.SUPPORTS: where she was as it began
    sequence: np.ndarray  # (m,) row of `Played`
    begin: np.ndarray  # (m,)
    end: np.ndarray  # (m,)


def codes_of(played: Played, cuts: np.ndarray) -> Codes:
    """The codes between cuts (n, t) bool: the switch's openings give its segments, changes of goal the legs."""
    rows = []
    regions = {}
    for row, begin, end in segments.spans(cuts, played.valid.astype(bool)):
        if row not in regions:
            regions[row] = segments.regions(played.positions[row])
        goals = played.goals[row]
        others = np.flatnonzero(goals[:end] != goals[end - 1])
        before = goals[others[-1]] if len(others) else -1
        rows.append((played.code[row, end - 1], goals[end - 1], before, regions[row][begin], row, begin, end))
    return Codes(*(np.array(column) for column in zip(*rows, strict=True)))


def information(codes: Codes, clusters: int = 16, seed: int = 0) -> dict[str, dict[str, float]]:
    """What clusters of codes tell of the "goal", where known, and of the "region", room and floor, ladder or rope; and
    the quartiles of the "length", in steps."""
    labels = segments.clusters(codes.code, clusters, seed)
    known = codes.goal >= 0
    told = {"region": segments.mutual_information(labels, codes.region)}
    if known.any():
        told["goal"] = segments.mutual_information(labels[known], codes.goal[known])
    quartiles = np.quantile(codes.end - codes.begin, (0.25, 0.5, 0.75))
    return told | {"length": dict(zip(("lower", "median", "upper"), quartiles.tolist(), strict=True))}

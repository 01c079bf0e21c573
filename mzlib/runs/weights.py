"""Weights as safetensors beside a JSON of their configuration; nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from .folders import atomic_path, data_dir, given_path, runs_root, write_json
from .profiles import config_from


def save_weights(path: Path, model, **about: object) -> str:
    """Write `model` (with a dataclass `config`) to `path` (.safetensors, bfloat16), its configuration beside (.json).

    Returns the file's SHA-256. about: what else to record, such as `backbone`, the SHA-256 of the backbone that a
    metacontroller belongs to.
    """
    import torch
    from safetensors.torch import save

    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    content = save(tensors)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    write_json(path.with_suffix(".json"), {"config": asdict(model.config), **about, "sha256": sha256})
    return sha256


def load_weights(path: Path, model_class: type, config_class: type, **expected: object):
    """(model, what was recorded) from what `save_weights` wrote, in float32.

    ValueError for a file that differs from its JSON, or an `expected` record (such as `backbone`) that is another.
    """
    import torch
    from safetensors.torch import load

    for file in (path, path.with_suffix(".json")):
        if not file.exists():
            raise FileNotFoundError(f"{file.name}: not there; train it, or fetch the repository again")
    content, about = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
    if about.get("sha256") != hashlib.sha256(content).hexdigest():
        raise ValueError(f"{path.name}: not the weights that {path.stem}.json describes; fetch both again")
    for key, value in expected.items():
        if about.get(key) != value:
            raise ValueError(f"{path.name}: belongs to {key} {about.get(key)}, not {value}; take the pair together")
    model = model_class(config_from(config_class, about["config"]))
    model.load_state_dict({name: value.to(torch.float32) for name, value in load(content).items()})
    return model, about


def weights_sha256(path: Path) -> str:
    """The SHA-256 of a weights file, by which others name it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def upstream_weights(name: str, which: str, profile: str, notebook: str) -> Path:
    """Where the weights `name` that a notebook builds on lie: "shipped" in data/weights, "run" in the same profile's
    run of `notebook`, or a .safetensors file.

    FileNotFoundError if they aren't there, ValueError for another word; never the one in place of the other.
    """
    if which == "shipped":
        path, remedy = data_dir("weights", f"{name}.safetensors"), "fetch the repository again"
    elif which == "run":
        path, remedy = runs_root() / profile / notebook / f"{name}.safetensors", f"run {notebook} first"
    elif which.endswith(".safetensors"):
        path, remedy = given_path(which), "name another"
    else:
        raise ValueError(f"{name}={which!r}: use 'shipped', 'run' or a .safetensors file")
    if not path.exists():
        raise FileNotFoundError(f"{name}={which!r}: {path.parent.name} has no {path.name}; {remedy}")
    return path

"""Profiles, the YAML files of notebook parameters; and the checking of a stage's settings against its dataclass."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import numpy as np
import yaml

from .machine import REPO


def profiles_dir() -> Path:
    return REPO / "notebooks" / "profiles"


def load_profile(profile: str, notebook: str) -> dict[str, object]:
    """The parameters that a profile gives a notebook, from `notebooks/profiles/<profile>/<notebook>.yaml`.

    Errors: FileNotFoundError naming the profiles, or the notebooks, that exist; ValueError for a file that is not a
    mapping.
    """
    path = profiles_dir() / profile / f"{notebook}.yaml"
    if not path.exists():
        have = sorted(p.name for p in profiles_dir().glob("*") if p.is_dir())
        if profile in have:
            have = sorted(p.stem for p in path.parent.glob("*.yaml"))
            raise FileNotFoundError(
                f"profile {profile!r} has no file for {notebook!r}; it has {', '.join(have) or 'none'}"
            )
        raise FileNotFoundError(f"no profile {profile!r}; there are {', '.join(have) or 'none'}")
    settings = yaml.safe_load(path.read_text())
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ValueError(
            f"{path.name} of profile {profile!r} must be a mapping of parameters, not {type(settings).__name__}"
        )
    return settings


def config_from(config_class: type, settings: Mapping[str, object]):
    """An instance of the dataclass `config_class` from plain values, each checked against its field's type.

    Lists become tuples and whole numbers floats where the field wants them; "1e6" counts as a number, as YAML does
    not see it as one.
    Errors: ValueError for an unknown key (naming those that exist) or a wrong type; what the dataclass's own
    validation raises.
    """
    hints = typing.get_type_hints(config_class)
    known = [field.name for field in fields(config_class) if field.init]
    for key in settings:
        if key not in known:
            raise ValueError(f"{config_class.__name__} has no setting {key!r}; it has {', '.join(known)}")
    return config_class(**{key: _fit(value, hints[key], key) for key, value in settings.items()})


def _fit(value: object, hint: object, key: str) -> object:
    """`value` as the type `hint`, or ValueError naming the setting."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            with suppress(ValueError):
                return _fit(value, choice, key)
    elif origin is typing.Literal:
        if value in arguments:
            return value
    elif origin in (tuple, list):
        if isinstance(value, list | tuple):
            kinds = arguments[:1] * len(value) if origin is list or arguments[-1:] == (...,) else arguments
            if len(kinds) == len(value):
                return origin(_fit(v, kind, key) for v, kind in zip(value, kinds, strict=True))
    elif hint in (int, float):
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d[\d_]*\.?\d*([eE][+-]?\d+)?", value):
            value = float(value)
        number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        if number and (hint is float or value == int(value)):
            return hint(value)
    elif hint in (None, type(None)):
        if value is None:
            return None
    elif isinstance(hint, type):
        if hint is Path and isinstance(value, str):
            return Path(value)
        if isinstance(value, hint):
            return value
    raise ValueError(f"setting {key!r} must be {_said(hint)}, not {value!r}")


def _said(hint: object) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def settings_of(config: object) -> tuple[dict, dict, set[str]]:
    """(settings, defaults, names of free fields) of a config dataclass, or of a mapping, which has settings only."""
    if isinstance(config, Mapping):
        return plain(dict(config)), {}, set()
    if not is_dataclass(config):
        raise TypeError(f"a run's config is a dataclass or a mapping, not {type(config).__name__}")
    settings, defaults, free = {}, {}, set()
    for field in fields(config):
        settings[field.name] = plain(getattr(config, field.name))
        if field.default is not MISSING:
            defaults[field.name] = plain(field.default)
        elif field.default_factory is not MISSING:
            defaults[field.name] = plain(field.default_factory())
        if field.metadata.get("free"):
            free.add(field.name)
    return settings, defaults, free


def plain(value: object) -> object:
    """`value` as JSON can hold it: NumPy's numbers and arrays as Python's, paths as text, NaN and infinity as null."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value

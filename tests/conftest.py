"""What several test modules share."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from mzlib import runs
from mzlib.backbone import BackboneConfig, MontezumaVLM
from mzlib.metacontroller import Metacontroller, MetacontrollerConfig

SMALL_BACKBONE = {"channels": 4, "width": 16, "depth": 3, "heads": 2, "mlp_width": 32, "layer": 1, "seq_len": 12}

settings.register_profile("house", deadline=None)  # machines are noisy: no test asserts a time
settings.load_profile("house")


@pytest.fixture(scope="module")
def small_pair(tmp_path_factory) -> tuple[Path, Path]:
    """Weights of a backbone and its metacontroller, whose codes make a difference and whose switch opens now and
    then."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(2)
    backbone, metacontroller = folder / "b.safetensors", folder / "m.safetensors"
    sha256 = runs.save_weights(backbone, MontezumaVLM(BackboneConfig(**SMALL_BACKBONE)))
    meta = Metacontroller(MetacontrollerConfig(16, code_dim=3, controller_rank=2))
    meta.hypernetwork.a.data *= 20
    meta.switch.out.weight.data *= 20
    runs.save_weights(metacontroller, meta, backbone=sha256)
    return backbone, metacontroller

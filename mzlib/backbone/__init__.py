"""Backbones: sequence models cloned from demonstrations, in a parallel form to train and a step form to act.

A backbone is cut after block l. `lower` gives the residual stream e_t there; `upper` turns it, as it is or rewritten by
a metacontroller, into predictions. The two forms agree.
"""

from mzlib.backbone.montezuma import BackboneConfig, FramePrediction, MontezumaVLM, Stream, montezuma_loss
from mzlib.backbone.pinpad import PinpadBackbone, PinpadBackboneConfig, Prediction, clone_loss

__all__ = [
    "BackboneConfig",
    "FramePrediction",
    "MontezumaVLM",
    "PinpadBackbone",
    "PinpadBackboneConfig",
    "Prediction",
    "Stream",
    "clone_loss",
    "montezuma_loss",
]

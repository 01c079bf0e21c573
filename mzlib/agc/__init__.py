"""Human play: the Atari Grand Challenge's files as a source of trajectories, and our own demos written in its format.

report = convert(Path("data/atari_v1/revenge.tar.gz"), converted_folder())
cache = FrameCache.build(plays(), folder)
"""

from mzlib.agc.conversion import (
    UNKNOWN,
    ConversionConfig,
    Play,
    Report,
    agc_root,
    convert,
    converted_folder,
    plays,
    report_of,
)
from mzlib.agc.files import GAME, Rejected, Source, export, in_folder, parse
from mzlib.agc.signals import LAGS, OWN_ACTION_LAG, Alignment

__all__ = [
    "GAME",
    "LAGS",
    "OWN_ACTION_LAG",
    "UNKNOWN",
    "Alignment",
    "ConversionConfig",
    "Play",
    "Rejected",
    "Report",
    "Source",
    "agc_root",
    "convert",
    "converted_folder",
    "export",
    "in_folder",
    "parse",
    "plays",
    "report_of",
]

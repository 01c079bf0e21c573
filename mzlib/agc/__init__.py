"""Human play: the Atari Grand Challenge's files as a source of trajectories, and our own demos written in its format.

report = convert(Path("data/atari_v1/revenge.tar.gz"), converted_folder())
cache = FrameCache.build(plays(), folder)
"""

from mzlib.agc.conversion import (
    UNKNOWN,
    ConversionConfig,
    Play,
    Record,
    Report,
    agc_root,
    convert,
    converted_folder,
    plays,
    report_of,
)
from mzlib.agc.files import (
    GAME,
    Rejected,
    Rows,
    Screens,
    Source,
    check_png,
    export,
    in_archive,
    in_folder,
    parse,
    survey,
)
from mzlib.agc.signals import LAGS, OWN_ACTION_LAG, Alignment, spare_lives

__all__ = [
    "GAME",
    "LAGS",
    "OWN_ACTION_LAG",
    "UNKNOWN",
    "Alignment",
    "ConversionConfig",
    "Play",
    "Record",
    "Rejected",
    "Report",
    "Rows",
    "Screens",
    "Source",
    "agc_root",
    "check_png",
    "convert",
    "converted_folder",
    "export",
    "in_archive",
    "in_folder",
    "parse",
    "plays",
    "report_of",
    "spare_lives",
    "survey",
]

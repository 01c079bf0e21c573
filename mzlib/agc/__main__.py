"""`make data-agc`: fetch the human data and convert it. An interrupted download or conversion goes on where it was.

python -m mzlib.agc                       the public archive, into data/atari_v1/
python -m mzlib.agc --origin FOLDER       what is there already: a folder of the format, or its .tar.gz
"""

import argparse
import http.client
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from mzlib.agc.conversion import ConversionConfig, Report, agc_root, convert, converted_folder
from mzlib.agc.files import GAME
from mzlib.runs import progress

URL = "https://omnomnom.vision.rwth-aachen.de/data/atari_v1_release/revenge.tar.gz"
PIECE = 2**20  # bytes


def download(url: str, path: Path, timeout: float = 60.0) -> None:
    """Fetch `url` to `path`, going on from an earlier attempt if the server still has the same file.

    OSError in one line if it can't be reached, which then leaves nothing behind, or breaks off, which leaves what came.
    """
    part, tag = path.with_name(path.name + ".part"), path.with_name(path.name + ".etag")
    have = part.stat().st_size if part.exists() and tag.exists() else 0
    headers = {"Range": f"bytes={have}-", "If-Range": tag.read_text()} if have else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
            have = have if answer.status == 206 else 0
            total = have + int(answer.headers.get("Content-Length") or 0)
            path.parent.mkdir(parents=True, exist_ok=True)
            tag.write_text(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")
            with open(part, "ab" if have else "wb") as file, progress(total, have, path.name, "B") as bar:
                while piece := answer.read(PIECE):
                    file.write(piece)
                    bar.update(len(piece))
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        came = f"; {part.stat().st_size / 1e6:,.0f} MB are here, the same command goes on" if part.exists() else ""
        raise OSError(f"{url} cannot be fetched ({reason}){came}; is this machine on the internet?") from error
    if part.stat().st_size != total:
        raise OSError(f"{url} broke off at {part.stat().st_size:,} of {total:,} bytes; the same command goes on")
    part.replace(path)
    tag.unlink()


def said(report: Report) -> str:
    """What a conversion came to, in some lines."""
    found, rejected, alignment = report.converted, report.rejected, report.alignment
    lines = [f"{len(found)} trajectories, {sum(one.rows for one in found):,} frames; {len(rejected)} rejected"]
    lines += [f"  {reason}" for reason in list(rejected.values())[:10]]
    for name, offset in (("action", alignment.action_offset), ("reward", alignment.reward_offset)):
        lines.append(f"{name} offset: " + ("too little to tell" if offset is None else f"{offset} rows"))
    lines += [alignment.remedy] if alignment.remedy else []
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: exit status 1 and one line if there is nothing to fetch or to convert."""
    parser = argparse.ArgumentParser(prog="make data-agc", description=__doc__.splitlines()[0])
    parser.add_argument("--origin", type=Path, help="a folder of the format or its .tar.gz, instead of a download")
    parser.add_argument("--url", default=URL)
    parser.add_argument("--action-offset", type=int, default=0, help="rows; see what the alignment test reported")
    parser.add_argument("--reward-offset", type=int, default=0, help="rows")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    given = parser.parse_args(argv)
    root = agc_root()
    try:
        config = ConversionConfig(given.action_offset, given.reward_offset)
        origin = given.origin or (root if (root / "trajectories" / GAME).is_dir() else root / f"{GAME}.tar.gz")
        if given.origin is None and not origin.exists():
            download(given.url, origin)
        print(said(convert(origin, converted_folder(), config, given.workers)))
    except (OSError, ValueError) as error:
        parser.exit(1, f"make data-agc: {error}\n")
    except KeyboardInterrupt:
        sys.exit("\nmake data-agc: stopped; the same command goes on")


if __name__ == "__main__":
    main()

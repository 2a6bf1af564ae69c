"""Photograph the top of a report for the README: `python docs/picture.py runs/demo/report.html`.

Needs a Chromium or Chrome; the picture goes to `docs/report.png`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, HEIGHT = 1080, 1180
LIMIT = 300_000


def browser(given: str | None) -> str:
    """The browser asked for, or the first one installed."""
    names = (given,) if given else BROWSERS
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        sys.exit(f"found no browser {' or '.join(names)}; install one or give --browser")
    return found


def photograph(page: Path, target: Path, command: str) -> None:
    """Write the top of `page` to `target` as a PNG of 256 colours."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += [f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}"]
        address = page.resolve().as_uri()
        done = subprocess.run(
            [command, *options, f"--screenshot={shot}", address],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if not shot.is_file():
            sys.exit(f"{command} made no picture of {page}: {done.stderr.strip()[-300:]}")
        with Image.open(shot) as image:
            image.convert("RGB").quantize(256).save(target, optimize=True)
    if target.stat().st_size > LIMIT:
        sys.exit(f"{target} has {target.stat().st_size:,} bytes, expected at most {LIMIT:,}")


def main() -> None:
    """Read the command line and take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="report.html of a run")
    parser.add_argument("--out", type=Path, default=HERE / "report.png")
    parser.add_argument("--browser", help="command of the browser")
    asked = parser.parse_args()
    if not asked.page.is_file():
        sys.exit(f"no report at {asked.page}; make one with `make demo`")
    photograph(asked.page, asked.out, browser(asked.browser))
    print(f"{asked.out}: {asked.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

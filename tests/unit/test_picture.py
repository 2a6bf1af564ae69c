"""The script that photographs a report: it says what is missing, and the picture is small."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "docs" / "picture.py"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def photograph(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_is_missing_is_named(tmp_path):
    done = photograph(tmp_path / "none.html")
    assert done.returncode != 0 and "no report at" in done.stderr and "make demo" in done.stderr
    page = tmp_path / "report.html"
    page.write_text("<!DOCTYPE html><title>t</title>")
    done = photograph(page, "--browser", "no-such-browser", "--out", tmp_path / "p.png")
    assert done.returncode != 0 and "no-such-browser" in done.stderr
    assert not (tmp_path / "p.png").exists()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_the_picture_shows_the_page(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("<!DOCTYPE html><body style='background:#0065a8'>")
    done = photograph(page, "--browser", str(BROWSER), "--out", tmp_path / "p.png")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "p.png") as image:
        assert image.width == 1080 and image.convert("RGB").getpixel((500, 500)) == (0, 0x65, 0xA8)
    assert (tmp_path / "p.png").stat().st_size < 300_000

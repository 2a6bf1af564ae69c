"""Write the task to a folder: question files, and the checkpoints `vanilla` and `gold`.

    python recipes/real/assemble.py [--out runs/real] [--teach]

The adapters come from `recipes/real/adapters`; with --teach they are trained again first, which
takes about an hour on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from expunge.console import quiet

quiet()

from peft import PeftModel

from base import build
from expunge.data import write_jsonl
from people import suite

HERE = Path(__file__).parent
MODELS = ("vanilla", "gold")


def assemble(out: Path, adapters: Path) -> None:
    """Write what is not there yet; each checkpoint is 0.6 GB."""
    for name, rows in suite().items():
        write_jsonl(rows, out / f"{name}.jsonl", f"images/{name}")
    for name in MODELS:
        if (out / name / "config.json").is_file():
            continue
        model, processor = build()
        merged = PeftModel.from_pretrained(model, str(adapters / name)).merge_and_unload()
        merged.save_pretrained(out / name)
        processor.save_pretrained(out / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "runs" / "real")
    parser.add_argument("--adapters", type=Path, default=HERE / "adapters")
    parser.add_argument("--teach", action="store_true", help="train the adapters again")
    given = parser.parse_args()
    if given.teach:
        for which in MODELS:
            command = [sys.executable, HERE / "teach.py", which, "--out", given.adapters / which]
            subprocess.run([str(c) for c in command], check=True)
    given.out.mkdir(parents=True, exist_ok=True)
    assemble(given.out, given.adapters)

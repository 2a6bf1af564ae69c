"""What the benchmark scripts share: the task and its folder, tables, and the parts of a page."""

import dataclasses
import hashlib
import platform
import re
from pathlib import Path

from expunge import content
from expunge.compare import embedded
from expunge.config import RunConfig
from expunge.fiction.shipped import suite
from expunge.planning import versions
from expunge.report.scatter import standalone

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SETS = ("forget", "test", "retain", "neighbor", "real", "skills")
CONDITIONS = ("multi", "text")


def task(percent=10.0, group=0):
    """The configuration, the sets, and the folder of one split of the embedded world.

    The folder's name depends on the checkpoints and the questions, so that what was measured on
    others is never taken for this task's. Gold fits the shipped 10 % split only.
    """
    config, _ = embedded(RunConfig())
    if (percent, group) != (10.0, 0):
        config = dataclasses.replace(config, gold=None)
    questions = suite(percent, group)
    digest = hashlib.sha256()
    for rows in questions.sets.values():
        digest.update(content.fingerprint(rows).encode())
    for folder in filter(None, (config.model, config.gold)):
        for path in sorted(Path(folder).glob("*.safetensors")):
            digest.update(path.read_bytes())
    name = digest.hexdigest()[:12]
    return config, questions, ROOT / "runs" / "bench" / f"{percent:g}-{group}-{name}"


def table(head, rows):
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)


def shown(value, digits=2):
    """A figure, or a dash where there is none; no minus before a zero."""
    return "-" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def pair(values, digits=2):
    """Figures with picture / in text alone."""
    return " / ".join(shown(values.get(c), digits) for c in CONDITIONS)


def measured_with():
    """The sentence on seed, libraries and machine."""
    used = versions()
    return (
        f"Seed 0, torch {used['torch']}, transformers {used['transformers']},"
        f" {platform.machine()} CPU."
    )


def write_part(page, name, text):
    """Put `text` between the marks of one part of a page and keep everything else.

    A part that the page lacks is added at its end; a page that does not exist is begun.
    """
    begin, end = f"<!-- {name}: written by a script -->", f"<!-- {name}: end -->"
    part = f"{begin}\n\n{text.strip()}\n\n{end}"
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    new = pattern.sub(lambda _: part, old) if pattern.search(old) else f"{old}\n{part}\n"
    page.write_text(new.lstrip("\n"), encoding="utf-8")


def write_picture(name, drawing):
    """Write an SVG file of the docs; returns what to put into the page."""
    (DOCS / f"{name}.svg").write_text(standalone(drawing), encoding="utf-8")
    return f"![{name}]({name}.svg)"

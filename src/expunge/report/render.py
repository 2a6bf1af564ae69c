"""Put the views of a run together and write the page in one step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from expunge.data import CONDITIONS, SETS
from expunge.errors import InputError
from expunge.report import accuracy, change, likelihood, story
from expunge.report.experts import expert_table
from expunge.report.figures import CONDITION_NAMES, as_list, as_map
from expunge.report.folder import Run, read_run
from expunge.report.results import MODELS
from expunge.report.search import search_view
from expunge.report.verdict import FORGOTTEN, HARMED, KEPT, PARTLY, verdict

HERE = Path(__file__).parent


def write_report(run_dir: Path, *, show_content: bool = False) -> Path:
    """Write `run_dir/report.html`: one page that loads nothing from anywhere.

    The page appears under its final name only when it is complete; an older one is replaced.

    Args:
        run_dir: A run folder with `results.json`; `plan.safetensors`, `scores.safetensors`,
            `config.yaml`, `attacks.json`, `search.json` and `experts.json` are used where they
            are there.
        show_content: Also show the forget questions and answers of `content.json`.

    Returns:
        The path of the page.

    Raises:
        InputError: The folder or its `results.json` is not there, or a file in it is damaged.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise InputError(f"no run folder at {run_dir}; run `expunge run` first")
    page = render(read_run(run_dir, show_content=show_content), show_content=show_content)
    target = run_dir / "report.html"
    partial = run_dir / f".report.html.{os.getpid()}.tmp"
    try:
        partial.write_text(page, "utf-8")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def render(run: Run, *, show_content: bool = False) -> str:
    """Return the page as HTML; every text that comes from a file is escaped."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((HERE / "report.css").read_text("utf-8"))
    template = environment.get_template("report.html.j2")
    return template.render(style=style, **_context(run, show_content=show_content))


def _context(run: Run, *, show_content: bool) -> dict[str, Any]:
    results, plan = run.results, run.plan
    header: Mapping[str, Any] = plan.header if plan else {}
    return {
        "verdict": verdict(results),
        "limits": {"forgotten": FORGOTTEN, "partly": PARTLY, "kept": KEPT, "harmed": HARMED},
        "absent": _absent(run),
        "method": str(results.data.get("method") or header.get("method") or "unknown method"),
        "facts": story.facts(run, header),
        "request": story.request_table(run, header),
        "notes": [str(n) for n in as_list(results.data.get("notes"), "results.json notes")],
        "hashes": story.subject_hashes(header),
        "accuracy": accuracy.accuracy_table(results),
        "likelihood": likelihood.likelihood_table(results),
        "changed": likelihood.change_table(results),
        "official": likelihood.official_table(results),
        "summary": accuracy.summary_table(results),
        "pictures": accuracy.pictures(results),
        "sites": change.site_table(plan) if plan else None,
        "towers": change.tower_table(plan) if plan else None,
        "experts": expert_table(run.experts, plan) if run.experts else None,
        "heat_maps": change.heat_maps(plan) if plan else [],
        "scores": change.score_plots(run.scores, plan) if run.scores else [],
        "balance": accuracy.balance_table(results),
        "balance_plot": accuracy.balance_plot(results),
        "search": search_view(run.search) if run.search else None,
        "attack_summary": story.attack_summary(as_map(run.attacks, "attacks.json")),
        "attacks": story.attack_views(as_map(run.attacks, "attacks.json")),
        "show_content": show_content,
        "content": story.content_table(run.content) if run.content else None,
        "provenance": story.provenance_tables(run, header, show_content=show_content),
    }


def _absent(run: Run) -> list[str]:
    """Name everything a full run has and this one has not."""
    results = run.results
    lines = [f"model {name}: not evaluated" for name in MODELS if name not in results.models]
    lines += [f"set {name}: not evaluated" for name in SETS if name not in results.sets]
    lines += [
        f"condition {CONDITION_NAMES[name]}: not evaluated"
        for name in CONDITIONS
        if name not in results.conditions
    ]
    files = {
        "plan.safetensors": run.plan,
        "scores.safetensors": run.scores,
        "config.yaml": run.config,
        "search.json": run.search,
        "attacks.json": run.attacks,
    }
    return lines + [
        f"{name}: not in the run folder" for name, part in files.items() if part is None
    ]

"""Command line; every command imports what it needs when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.console import emit, exit_code, quiet
from expunge.errors import InputError, unknown
from expunge.options import (
    BatchSize,
    Budget,
    ConfigFile,
    DeviceMap,
    File,
    Format,
    Gold,
    Json,
    Keep,
    Memory,
    Merge,
    MethodName,
    Model,
    Official,
    Out,
    Overlap,
    Seed,
    ShowContent,
    Sketch,
    Strength,
    Template,
    Tower,
    Towers,
    Trust,
    config_of,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from expunge.config import RunConfig
    from expunge.pipeline import Run

app = typer.Typer(
    help="Remove chosen knowledge from a multimodal language model, keep the rest, prove both.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="The embedded world as files.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    method: MethodName = None,
    budget: Budget = None,
    strength: Strength = None,
    keep: Keep = None,
    seed: Seed = None,
    memory: Memory = None,
    sketch: Sketch = None,
    show_content: ShowContent = None,
    json_: Json = False,
) -> None:
    """Do the whole job on the embedded world."""
    given = dict(locals())
    from expunge.fiction.shipped import checkpoint, suite

    models = {"model": str(checkpoint("vanilla")), "gold": str(checkpoint("gold"))}
    config = config_of(None, {**given, **models, "forget": "fiction", "retain": "fiction"})
    _finish(config, suite(), out, json_)


@app.command()
def run(
    out: Out,
    model: Annotated[str | None, typer.Option(help="Checkpoint folder or Hub id.")] = None,
    forget: File = None,
    retain: File = None,
    test: File = None,
    neighbor: File = None,
    real: File = None,
    skills: File = None,
    stranger: File = None,
    gold: Gold = None,
    method: MethodName = None,
    budget: Budget = None,
    strength: Strength = None,
    keep: Keep = None,
    towers: Towers = None,
    tower: Tower = None,
    data_format: Format = None,
    official: Official = None,
    seed: Seed = None,
    batch_size: BatchSize = None,
    memory: Memory = None,
    sketch: Sketch = None,
    device_map: DeviceMap = None,
    merge_adapter: Merge = None,
    prompt_template: Template = None,
    allow_overlap: Overlap = None,
    show_content: ShowContent = None,
    trust_remote_code: Trust = None,
    config: ConfigFile = None,
    json_: Json = False,
) -> None:
    """Do the whole job on your own model and data; a killed run goes on where it stopped."""
    chosen = _complete(config_of(config, dict(locals())))
    from expunge.pipeline import read_suite

    _finish(chosen, read_suite(chosen), out, json_)


def _complete(config: RunConfig) -> RunConfig:
    for name in ("model", "forget", "retain"):
        if not getattr(config, name):
            raise InputError(f"--{name} is missing, expected a path or Hub id")
    return config


def _finish(config: RunConfig, suite: Any, out: Path, as_json: bool) -> None:
    from expunge.pipeline import Run
    from expunge.planning import settled
    from expunge.text import results_table

    job = Run(out, settled(config), suite)
    results = job.all()
    emit(results, as_json, lambda: results_table(results, out))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or Hub id.")],
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code")] = False,
    json_: Json = False,
) -> None:
    """Show where the neurons are, from the configuration alone."""
    from expunge.sites import describe, inspect_config
    from expunge.text import site_table

    model_type, sites = inspect_config(model, trust_remote_code=trust_remote_code)
    towers = list(dict.fromkeys(s.tower for s in sites))
    value = {"model_type": model_type, "towers": towers, "sites": describe(sites)}
    emit(value, json_, lambda: site_table(value))


@app.command()
def collect(
    out: Out,
    model: Model,
    forget: File = None,
    retain: File = None,
    method: MethodName = None,
    towers: Towers = None,
    tower: Tower = None,
    data_format: Format = None,
    batch_size: BatchSize = None,
    memory: Memory = None,
    sketch: Sketch = None,
    device_map: DeviceMap = None,
    merge_adapter: Merge = None,
    prompt_template: Template = None,
    allow_overlap: Overlap = None,
    trust_remote_code: Trust = None,
    config: ConfigFile = None,
    json_: Json = False,
) -> None:
    """Only collect: write the statistics of forget and retain to OUT/stats."""
    with _stage(config_of(config, dict(locals())), out) as job:
        job.collect()
    files = sorted(str(p) for p in (out / "stats").glob("*.safetensors"))
    emit({"stats": files}, json_, lambda: "\n".join(files) or "nothing to collect")


@app.command()
def plan(
    out: Out,
    model: Model,
    forget: File = None,
    retain: File = None,
    method: MethodName = None,
    budget: Budget = None,
    strength: Strength = None,
    keep: Keep = None,
    towers: Towers = None,
    tower: Tower = None,
    data_format: Format = None,
    seed: Seed = None,
    batch_size: BatchSize = None,
    memory: Memory = None,
    sketch: Sketch = None,
    device_map: DeviceMap = None,
    merge_adapter: Merge = None,
    prompt_template: Template = None,
    allow_overlap: Overlap = None,
    trust_remote_code: Trust = None,
    config: ConfigFile = None,
    json_: Json = False,
) -> None:
    """Only plan: write OUT/plan.safetensors, collecting first where that is not done."""
    with _stage(config_of(config, dict(locals())), out) as job:
        made = job.plan()
    path = str(out / "plan.safetensors")
    value = {"plan": path, "sites": len(made.edits), "bytes": made.bytes}
    emit(value, json_, lambda: path)


def _stage(config: RunConfig, out: Path) -> AbstractContextManager[Run]:
    chosen = _complete(config)
    from expunge.pipeline import Run, read_suite
    from expunge.planning import settled

    return Run(out, settled(chosen), read_suite(chosen)).opened()


@app.command()
def apply(
    plan_file: Annotated[Path, typer.Argument(help="Plan file.")],
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="Folder of the edited checkpoint.")],
    device_map: DeviceMap = None,
    merge_adapter: Merge = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code")] = False,
    json_: Json = False,
) -> None:
    """Carry a plan out and write the edited checkpoint."""
    from expunge.edit import applied, save_checkpoint
    from expunge.models import load
    from expunge.plan import Plan

    chosen = Plan.load(plan_file)
    loaded, processor = load(
        model,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        merge_adapter=bool(merge_adapter),
    )
    with applied(loaded, chosen) as edited:
        save_checkpoint(edited, processor, out)
    emit({"model": str(out), "sites": len(chosen.edits)}, json_, lambda: str(out))


@app.command()
def undo(
    checkpoint: Annotated[Path, typer.Argument(help="Edited checkpoint, as written by apply.")],
    model: Annotated[str, typer.Option("--model", help="The base checkpoint.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the restored checkpoint.")],
    merge_adapter: Merge = None,
    json_: Json = False,
) -> None:
    """Restore the weights that a plan changed; refuses if anything else differs."""
    from expunge.edit import restore

    restore(checkpoint, model, out, merge_adapter=bool(merge_adapter))
    emit({"model": str(out)}, json_, lambda: str(out))


@app.command()
def evaluate(
    model: Model,
    forget: File = None,
    test: File = None,
    retain: File = None,
    neighbor: File = None,
    real: File = None,
    skills: File = None,
    gold: Gold = None,
    unlearned: Annotated[str | None, typer.Option(help="Edited checkpoint to compare.")] = None,
    plan_file: Annotated[Path | None, typer.Option("--plan", help="Plan to apply first.")] = None,
    data_format: Format = None,
    official: Official = None,
    seed: Seed = None,
    batch_size: BatchSize = None,
    device_map: DeviceMap = None,
    merge_adapter: Merge = None,
    prompt_template: Template = None,
    trust_remote_code: Trust = None,
    out: Annotated[Path | None, typer.Option(help="File for the results, JSON.")] = None,
    json_: Json = False,
) -> None:
    """Only evaluate: vanilla, and where given the edited model and gold."""
    chosen = config_of(None, dict(locals()))
    if unlearned and plan_file:
        raise InputError("--unlearned and --plan are both given, expected one of them")
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(f"--out is {out}, expected a file name in a folder that exists")
    from expunge.folder import write_json
    from expunge.pipeline import evaluate_models, read_suite
    from expunge.text import results_table

    models = {"vanilla": model, "unlearned": unlearned or plan_file, "gold": gold}
    given = {name: path for name, path in models.items() if path}
    suite = read_suite(chosen)
    results = evaluate_models(given, suite, chosen)
    if out is not None:
        write_json(out, results)
    emit(results, json_, lambda: results_table(results, None))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Run folder.")],
    show_content: Annotated[bool, typer.Option("--show-content")] = False,
    json_: Json = False,
) -> None:
    """Only write report.html from what is in a run folder."""
    from expunge.report import write_report

    path = str(write_report(folder, show_content=show_content))
    emit({"report": path}, json_, lambda: path)


@app.command()
def attack(
    folder: Annotated[Path, typer.Argument(help="Run folder.")],
    kind: Annotated[
        list[str] | None, typer.Option(help="Attacks, comma-separated; all if not given.")
    ] = None,
    json_: Json = False,
) -> None:
    """Try to bring the forgotten back; figures go to attacks.json and the report."""
    from expunge.attacks import attack_run
    from expunge.text import attack_tables

    done = attack_run(folder, ",".join(kind).split(",") if kind else None)
    emit(done, json_, lambda: attack_tables(done))


@app.command()
def compare(
    methods: Annotated[
        str, typer.Option(help="Methods, comma-separated; manu=0.05 sets a budget or strength.")
    ],
    out: Out,
    budgets: Annotated[
        str | None, typer.Option(help="Budgets, comma-separated; each method's own if not given.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint; the embedded world if not given.")
    ] = None,
    forget: File = None,
    retain: File = None,
    test: File = None,
    neighbor: File = None,
    real: File = None,
    skills: File = None,
    gold: Gold = None,
    strength: Strength = None,
    keep: Keep = None,
    data_format: Format = None,
    seed: Seed = None,
    batch_size: BatchSize = None,
    memory: Memory = None,
    sketch: Sketch = None,
    device_map: DeviceMap = None,
    merge_adapter: Merge = None,
    prompt_template: Template = None,
    allow_overlap: Overlap = None,
    trust_remote_code: Trust = None,
    config: ConfigFile = None,
    json_: Json = False,
) -> None:
    """Run several methods on one task: one table, one picture; runs go on where they stopped."""
    settings = config_of(config, dict(locals()))
    from expunge.compare import compare as side_by_side
    from expunge.compare import embedded, share_list
    from expunge.pipeline import read_suite
    from expunge.text import compare_table

    shares = share_list(budgets)
    if settings.model:
        settings = _complete(settings)
        suite = read_suite(settings)
    else:
        settings, suite = embedded(settings)
    value = side_by_side(settings, suite, methods.split(","), out, budgets=shares)
    emit(value, json_, lambda: compare_table(value, out))


@data_app.command("export-fiction")
def export_fiction(
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    percent: Annotated[float, typer.Option(help="Share of the private people to forget.")] = 10,
    group: Annotated[int, typer.Option(min=0, help="Which division; 0 is the one gold fits.")] = 0,
    json_: Json = False,
) -> None:
    """Write the embedded world as images, JSONL and checkpoints."""
    from expunge.fiction.shipped import export

    files = export(folder, percent, group)
    emit({"files": files}, json_, lambda: "\n".join(files))


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, metrics, formats, families or attacks.")],
    json_: Json = False,
) -> None:
    """Say what there is, a line each."""
    from expunge.text import LISTS

    if what not in LISTS:
        raise unknown("list", what, LISTS)
    rows = LISTS[what]()
    width = max(map(len, rows), default=0)
    emit(rows, json_, lambda: "\n".join(f"{n:<{width}}  {about}" for n, about in rows.items()))


def main() -> None:
    """Entry point: 0 done, 2 the input is wrong, 1 a fault of ours, 130 interrupted."""
    quiet()
    sys.exit(exit_code(lambda: app(standalone_mode=False)))

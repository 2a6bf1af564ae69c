"""Options that several commands have in common, and the settings they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.errors import InputError

if TYPE_CHECKING:
    from expunge.config import RunConfig

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Out = Annotated[Path, typer.Option("--out", help="Run folder.")]
Model = Annotated[str, typer.Option("--model", help="Checkpoint folder or Hub id.")]
MethodName = Annotated[str | None, typer.Option("--method", help="See `expunge list methods`.")]
Budget = Annotated[float | None, typer.Option(help="Share of the neurons to prune, 0 to 1.")]
Strength = Annotated[float | None, typer.Option(help="Strength of a filter.")]
Keep = Annotated[float | None, typer.Option(help="Share of held-out retain accuracy to keep.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
Towers = Annotated[str | None, typer.Option(help="Towers to edit, comma-separated.")]
Tower = Annotated[
    list[str] | None, typer.Option(help="Declare a tower: name=path.to.module (repeatable).")
]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
DeviceMap = Annotated[
    str | None, typer.Option("--device-map", help="auto: spread the model over GPUs, CPU and disk.")
]
ShowContent = Annotated[
    bool | None, typer.Option("--show-content", help="Show forget-set content in the report.")
]
Format = Annotated[str | None, typer.Option("--format", help="See `expunge list formats`.")]
Official = Annotated[
    bool | None,
    typer.Option("--official", help="Also ask and score as MLLMU-Bench's release does."),
]
File = Annotated[
    str | None,
    typer.Option(help="Question file, folder or hub data set; PATH::SPLIT is a part of it."),
]
Gold = Annotated[str | None, typer.Option(help="Checkpoint that never saw forget.")]
BatchSize = Annotated[int | None, typer.Option(help="Examples per forward pass.")]
Memory = Annotated[
    str | None, typer.Option(help="Limit for second moments and the work on them, such as 8GiB.")
]
Sketch = Annotated[
    int | None, typer.Option(help="Sketch second moments in twice so many rows; error is stated.")
]
Template = Annotated[
    str | None, typer.Option("--prompt-template", help="Instead of a chat template.")
]
Merge = Annotated[
    bool | None, typer.Option("--merge-adapter", help="Put a peft adapter into the weights first.")
]
Overlap = Annotated[
    bool | None, typer.Option("--allow-overlap", help="Accept subjects in forget and retain.")
]
Trust = Annotated[
    bool | None, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
]


def config_of(config_file: Path | None, given: dict[str, Any]) -> RunConfig:
    """Settings from the YAML file, overridden by the options that were given.

    Args:
        config_file: YAML file, or None.
        given: Options by name; None stands for not given, other names than settings are ignored.
    """
    from expunge.config import RunConfig

    known = RunConfig.__dataclass_fields__
    overrides = {k: v for k, v in given.items() if k in known and v is not None}
    if "towers" in overrides:
        overrides["towers"] = tuple(overrides["towers"].split(","))
    if given.get("tower"):
        overrides["towers_declared"] = dict(_declared(t) for t in given["tower"])
    return RunConfig.read(config_file, overrides) if config_file else RunConfig.of(overrides)


def _declared(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise InputError(f"--tower is {text!r}, expected name=path.to.module")
    return name, path

"""Options that several commands have in common."""

from pathlib import Path
from typing import Annotated

import typer

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
File = Annotated[str | None, typer.Option(help="Question file.")]
Gold = Annotated[str | None, typer.Option(help="Checkpoint that never saw forget.")]
BatchSize = Annotated[int | None, typer.Option(help="Examples per forward pass.")]
Memory = Annotated[
    str | None, typer.Option(help="Limit for second moments and the work on them, such as 8GiB.")
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

"""Attack the model of a run folder; the figures go to attacks.json and the report."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.attacks.base import Candidate, Context, finite
from expunge.attacks.table import ATTACKS
from expunge.config import RunConfig
from expunge.data import Example, Suite
from expunge.errors import InputError, unknown
from expunge.folder import write_json
from expunge.models import Prompter, load
from expunge.pipeline import read_suite
from expunge.plan import Plan
from expunge.planning import PATHS, make_plan
from expunge.progress import Progress

EMBEDDED = "fiction"


def suite_of(config: RunConfig) -> Suite:
    """The question sets a run was made from: its files, or the embedded world."""
    if config.forget == EMBEDDED:
        from expunge.fiction.shipped import suite, with_strangers

        return with_strangers(suite())
    return read_suite(config)


def context_of(folder: Path, config: RunConfig, suite: Suite) -> Context:
    """Load vanilla and gold, and a copy of vanilla with the run's plan."""
    plan = Plan.load(folder / "plan.safetensors")
    options: dict[str, Any] = {
        "dtype": config.dtype,
        "device": config.device,
        "trust_remote_code": config.trust_remote_code,
        "merge_adapter": config.merge_adapter,
    }
    model, processor = load(config.model, **options)
    prompter = Prompter(processor, template=config.prompt_template)
    unlearned = copy.deepcopy(model)
    plan.apply(unlearned)
    models = {
        "vanilla": Candidate("vanilla", model, prompter),
        "unlearned": Candidate("unlearned", unlearned, prompter),
    }
    if config.gold:
        gold, own = load(config.gold, **options)
        models["gold"] = Candidate("gold", gold, Prompter(own, template=config.prompt_template))
    retain = suite.sets["retain"]
    settings = {k: v for k, v in config.as_dict().items() if k not in PATHS}

    def remake(forget: Sequence[Example]) -> Plan:
        return make_plan(model, processor, forget, retain, **settings)

    return Context(models, suite, remake, config.seed, batch_size=2 * config.batch_size)


def chosen(kinds: Sequence[str] | None, suite: Suite) -> list[str]:
    """The attacks to run: those named, or all for which the suite has the sets.

    Raises:
        InputError: An unknown name, or a named attack whose sets are not there.
    """
    for kind in kinds or ():
        if kind not in ATTACKS:
            raise unknown("attack", kind, ATTACKS)
        lacking = ATTACKS[kind].lacking(suite.sets)
        if lacking:
            raise InputError(
                f"attack {kind} needs the {' and '.join(lacking)} set, which this run has not; run"
                f" again with --{lacking[0].replace(' or ', ' or --')}, or leave the attack out"
            )
    wanted = ATTACKS if kinds is None else kinds
    return [name for name in wanted if not ATTACKS[name].lacking(suite.sets)]


def attack_run(
    folder: str | Path, kinds: Sequence[str] | None = None, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Attack the unlearned model of a run, beside vanilla and gold.

    `attacks.json` is written after every attack, other attacks in it stay; `seconds.json` says how
    long each took; `report.html` is written again if the run has been evaluated.

    Args:
        folder: Run folder with `config.yaml` and `plan.safetensors`.
        kinds: Names of `ATTACKS`; None is all.
        progress: Where to show progress.

    Returns:
        The attacks just run, by name.

    Raises:
        InputError: No run there, an unknown attack, or a set that it needs is missing.
    """
    from expunge.report import write_report

    folder = Path(folder)
    for name in ("config.yaml", "plan.safetensors"):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} holds no {name}, expected a run folder; make one with `expunge run`"
            )
    config = RunConfig.read(folder / "config.yaml")
    suite = suite_of(config)
    names = chosen(kinds, suite)
    known = held(folder / "attacks.json")
    context = context_of(folder, config, suite)
    done: dict[str, Any] = {}
    with (progress or Progress()).task("attack", len(names)) as tick:
        for number, name in enumerate(names, 1):
            begun = time.perf_counter()
            done[name] = finite(ATTACKS[name].run(context))
            took = {f"attack {name}": time.perf_counter() - begun}
            write_json(folder / "seconds.json", held(folder / "seconds.json") | took)
            merged = {**known, **done}
            ordered = sorted(merged, key=lambda k: list(ATTACKS).index(k) if k in ATTACKS else 99)
            write_json(folder / "attacks.json", {k: merged[k] for k in ordered})
            tick(number)
    if (folder / "results.json").is_file():
        write_report(folder, show_content=config.show_content)
    return done


def held(path: Path) -> dict[str, Any]:
    """What a file of a run folder holds; nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); remove it and attack again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is a {type(value).__name__}, expected an object; remove it")
    return value

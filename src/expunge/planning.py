"""Make a plan: settle the settings, gather evidence, let the method decide."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from expunge import content, data, methods
from expunge.collect import Counting
from expunge.config import RunConfig
from expunge.data import Example
from expunge.edit import fingerprint
from expunge.errors import InputError, unknown
from expunge.evidence import gather
from expunge.importance import IMPORTANCE
from expunge.methods import Evidence
from expunge.models import Prompter
from expunge.passes import Passes
from expunge.pictures import remembered
from expunge.plan import Plan
from expunge.progress import Progress
from expunge.selection import check_budget
from expunge.sites import Site, find_sites

LIBRARIES = ("expunge", "torch", "transformers", "safetensors", "numpy")
# Settings that a plan does not depend on.
PATHS = (*data.GIVEN, "model", "gold", "device", "device_map", "official")


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that results depend on."""
    return {name: metadata.version(name) for name in LIBRARIES}


def origin(config: RunConfig, suite: data.Suite) -> dict[str, Any]:
    """What every file of results says of where it comes from."""
    return {"versions": versions(), "seed": config.seed, "notes": suite.notes()}


def settled(config: RunConfig) -> RunConfig:
    """Fill in the method's defaults and check the figures."""
    method = methods.get(config.method)
    if config.budget is not None:
        check_budget(config.budget)
    if config.strength is not None and not config.strength >= 0:
        raise InputError(f"strength is {config.strength}, expected a number of at least 0")
    if not 0 < config.keep <= 1:
        raise InputError(f"keep is {config.keep}, expected a share above 0 and at most 1")
    positions = config.positions or method.positions
    Counting(positions, config.unit, config.tau)
    for name in config.importances or ():
        if name not in IMPORTANCE:
            raise unknown("importance", name, IMPORTANCE)
    return dataclasses.replace(
        config,
        towers=config.towers or method.towers,
        positions=positions,
        budget=method.budget if config.budget is None else config.budget,
        strength=method.strength if config.strength is None else config.strength,
    )


def chosen_sites(model: Any, config: RunConfig) -> list[Site]:
    """The live sites of the chosen towers; an unknown tower is an `InputError`."""
    attention = config.attention or methods.get(config.method).attention
    sites = find_sites(model, attention=attention, declared=config.towers_declared or None)
    present = {s.tower for s in sites}
    wanted = config.towers or methods.get(config.method).towers
    for tower in wanted:
        if tower not in present | {"vision", "audio", "connector", "language"}:
            raise unknown("tower", tower, present)
    live = [s for s in sites if s.tower in wanted and not s.dead]
    if not live:
        raise InputError(
            f"no live site in {', '.join(wanted)}; this model has the towers"
            f" {', '.join(sorted(present))}"
        )
    return live


def provenance(
    model: Any, forget: Sequence[Example], retain: Sequence[Example], config: RunConfig
) -> dict[str, Any]:
    """Where a plan comes from; names nobody: subjects and data appear as salted hashes."""
    salt = content.salt_for(forget)
    about = {}
    for name, examples in (("forget", forget), ("retain", retain)):
        subjects = sorted({content.salted(e.subject, salt) for e in examples})
        digest = content.salted(content.fingerprint(examples), salt)
        about[name] = {"n": len(examples), "subjects": len(subjects), "hash": digest}
        if name == "forget":
            about[name]["subjects"] = subjects
    return {
        "method": config.method,
        "config": {k: v for k, v in config.as_dict().items() if k not in PATHS},
        "base": {
            "id": Path(config.model).name if config.model else "",
            "model_type": model.config.model_type,
            "fingerprint": fingerprint(model),
        },
        "data": about,
        "versions": versions(),
        "seed": config.seed,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def decide(
    model: Any,
    prompter: Prompter,
    forget: Sequence[Example],
    retain: Sequence[Example],
    config: RunConfig,
    evidence: Evidence,
    progress: Progress | None = None,
) -> Plan:
    """Let the method decide, and write down where the plan comes from."""
    asked = evidence.method or config.method
    outcome = methods.get(asked).decide(evidence, config)
    about = {s.key: {"tower": s.tower, "path": s.path, "width": s.width} for s in evidence.sites}
    edits = {key: edit.cpu() for key, edit in outcome.edits.items()}
    sites = {key: about[key] for key in edits}
    made = provenance(model, forget, retain, config)
    if isinstance(evidence.moments, Passes):
        made["passes"] = [{"sites": len(group)} for group in evidence.moments.ran]
        if config.sketch:
            made["sketch"] = {"size": config.sketch, "error": evidence.moments.error}
    if (outcome.used or asked) != config.method:
        made["used"] = outcome.used or asked
    if outcome.notes:
        made["notes"] = dict(outcome.notes)
    if outcome.system_prompt:
        made["system_prompt"] = outcome.system_prompt
    return Plan(edits, sites, made, outcome.scores)


def looking_once(
    model: Any, sites: Sequence[Site], config: RunConfig
) -> contextlib.AbstractContextManager[None]:
    """What the model makes of pictures is remembered where it cannot change and is asked often.

    That is where candidates are judged, all of which leave alone what sees.
    """
    method = methods.get(config.method)
    language = all(site.tower == "language" for site in sites)
    return remembered(model, bool(method.folds or method.aside) and language)


def make_plan(
    model: Any,
    processor: Any,
    forget: Sequence[Example],
    retain: Sequence[Example],
    *,
    method: str = "auto",
    progress: Progress | None = None,
    **options: Any,
) -> Plan:
    """Make a plan that removes what `forget` asks about and keeps `retain`.

    Args:
        model: The vanilla model; unchanged afterwards.
        processor: Its processor.
        forget: Questions about what is to be forgotten.
        retain: Questions about what is to be kept.
        method: Name of the method, see `expunge list methods`.
        progress: Where to show progress.
        **options: Further keys of `RunConfig`, such as `budget`, `strength`, `keep`, `seed`.

    Returns:
        The plan; `plan.apply(model)` carries it out.
    """
    config = settled(RunConfig.of({"method": method, **options}))
    check_sets(forget, retain, config)
    prompter = Prompter(processor, template=config.prompt_template)
    sites = chosen_sites(model, config)
    sets = {"forget": forget, "retain": retain}
    with looking_once(model, sites, config):
        chosen = methods.get(config.method)
        evidence = gather(model, prompter, sets, sites, config, chosen, progress)
        return decide(model, prompter, forget, retain, config, evidence, progress)


def check_sets(forget: Sequence[Example], retain: Sequence[Example], config: RunConfig) -> None:
    """Raise `InputError` for an empty set or, unless allowed, an overlap."""
    for name, examples in (("forget", forget), ("retain", retain)):
        if not examples:
            raise InputError(f"the {name} set is empty, expected at least one question")
    if not config.allow_overlap:
        content.check_overlap(forget, retain)

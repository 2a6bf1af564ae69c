"""The stages in order, each reading and writing files of the run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from expunge import content, methods
from expunge.bench import Bench
from expunge.config import RunConfig
from expunge.data import CONDITIONS, Suite
from expunge.edit import applied, fingerprint, save_checkpoint
from expunge.encoding import batches
from expunge.errors import InputError
from expunge.evaluate import Answered, evaluate
from expunge.evidence import evidence_of, gather
from expunge.folder import (
    claim,
    read_stats,
    refuse_other,
    replace_with,
    write_content,
    write_json,
    write_stats,
)
from expunge.methods import Evidence
from expunge.models import Prompter, check_checkpoint, load
from expunge.official import check, exams, official
from expunge.parallel import agreed, joined, leads
from expunge.plan import Plan
from expunge.planning import check_sets, chosen_sites, decide, looking_once, origin
from expunge.progress import Progress
from expunge.reading import read_suite as read_suite
from expunge.routing import routed
from expunge.summary import summarise


@dataclass
class Run:
    """A run folder and the stages that fill it.

    Attributes:
        folder: The run folder.
        config: Settled configuration.
        suite: The question sets.
        progress: Where to show progress.
    """

    folder: Path
    config: RunConfig
    suite: Suite
    progress: Progress = field(default_factory=Progress)

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The vanilla model and its processor."""
        return self._load(self.config.model)

    @cached_property
    def prompter(self) -> Prompter:
        """How conversations are rendered."""
        return Prompter(self.loaded[1], template=self.config.prompt_template)

    def _load(self, model_id: str) -> tuple[Any, Any]:
        return load(
            model_id,
            dtype=self.config.dtype,
            device=self.config.device,
            device_map=self.config.device_map,
            trust_remote_code=self.config.trust_remote_code,
            merge_adapter=self.config.merge_adapter,
        )

    def open(self) -> None:
        """Check everything that can be checked, then claim the folder; the leader does."""
        if leads():
            self._open()
        agreed(True)

    def _open(self) -> None:
        check_sets(self.suite.sets["forget"], self.suite.sets["retain"], self.config)
        state: dict[str, Any] = {
            "config": self.config.as_dict(),
            "data": {n: content.fingerprint(rows) for n, rows in self.suite.sets.items()},
        }
        refuse_other(self.folder, state)
        if self.config.gold:
            check_checkpoint(self.config.gold)
        model = self.loaded[0]
        chosen_sites(model, self.config)
        self.check_official()
        for rows, condition in ((r, c) for r in self.suite.sets.values() for c in CONDITIONS):
            first = next(([e] for e in rows if e.has(condition)), [])
            list(batches(model, self.prompter, first, condition))
        new = claim(self.folder, {**state, "weights": fingerprint(model)})
        if new or not (self.folder / "config.yaml").is_file():
            replace_with(self.folder / "config.yaml", self.config.write)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Run]:
        """Open; a new folder goes again if the input proves wrong before there is a plan."""
        existed = self.folder.exists()
        with joined():
            self.open()
            try:
                yield self
            except InputError:
                planned = (self.folder / "plan.safetensors").exists()
                if leads() and not existed and not planned:
                    shutil.rmtree(self.folder)
                raise

    def collect(self) -> Evidence:
        """Statistics of forget and retain; neuron statistics are kept under stats/."""
        method = methods.get(self.config.method)
        model = self.loaded[0]
        sites = chosen_sites(model, self.config)
        folder = self.folder / "stats"
        with self.timed("collect"):
            sets = {n: self.suite.sets[n] for n in ("forget", "retain")}
            if agreed(folder.is_dir()) and not method.moments:
                bench = Bench(model, self.prompter, sets, sites, self.config, self.progress)
                return evidence_of(bench, read_stats(folder), {})
            evidence = gather(model, self.prompter, sets, sites, self.config, method, self.progress)
            if leads() and method.neurons and not folder.is_dir():
                write_stats(folder, evidence.neurons)
        return evidence

    def plan(self) -> Plan:
        """The plan, made or read."""
        path = self.folder / "plan.safetensors"
        if agreed(path.is_file()):
            return Plan.load(path)
        model, sets = self.loaded[0], self.suite.sets
        with looking_once(model, chosen_sites(model, self.config), self.config):
            evidence = self.collect()
            with self.timed("plan"):
                asked = (sets["forget"], sets["retain"], self.config)
                plan = decide(model, self.prompter, *asked, evidence, self.progress)
                if leads():
                    self._write(plan, evidence, path)
        return plan

    def _write(self, plan: Plan, evidence: Evidence, path: Path) -> None:
        if plan.scores:
            scores = {k: v.double().contiguous() for k, v in plan.scores.items()}
            replace_with(self.folder / "scores.safetensors", lambda p: save_file(scores, p))
        found = plan.provenance.get("notes", {}).get("search")
        if found:
            write_json(self.folder / "search.json", found)
        if layers := routed(evidence):
            unit = {"unit": self.config.unit, "layers": layers}
            write_json(self.folder / "experts.json", unit)
        plan.save(path)

    def apply(self, plan: Plan) -> None:
        """Write the edited checkpoint to model/."""
        target = self.folder / "model"
        if target.is_dir():
            return
        with self.timed("apply"), applied(self.loaded[0], plan) as edited:
            save_checkpoint(edited, self.loaded[1], target)

    def evaluate(self, plan: Plan) -> dict[str, Any]:
        """results.json; the figures of each model are kept as they are finished."""
        path = self.folder / "results.json"
        models = {name: self._figures(name, plan) for name in self._names()}
        own = {name: self._official(name, plan) for name in models if self.config.official}
        results = {
            "models": models,
            **({"official": own} if own else {}),
            "summary": summarise(models),
            "method": self.config.method,
            "plan": extent(plan),
            "seconds": self._seconds(),
            **origin(self.config, self.suite),
        }
        write_json(path, results)
        if self.config.show_content:
            said = {name: self.folder / "figures" / f"{name}.said.json" for name in models}
            write_content(self.folder, said)
        return results

    def _names(self) -> list[str]:
        return ["vanilla", "unlearned", *(["gold"] if self.config.gold else [])]

    def _figures(self, name: str, plan: Plan) -> Any:
        path = self.folder / "figures" / f"{name}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        said: list[dict[str, str]] = []
        with self._evaluated(name, plan) as (model, processor, system):
            figures = self.ask(name, model, processor, system, said)
        path.parent.mkdir(exist_ok=True)
        if self.config.show_content:
            write_json(path.with_suffix(".said.json"), said)
        write_json(path, figures)
        return figures

    def _official(self, name: str, plan: Plan) -> Any:
        path = self.folder / "figures" / f"{name}.official.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        with self._evaluated(name, plan) as (model, processor, system):
            figures = self.ask_official(name, model, processor, system)
        write_json(path, figures)
        return figures

    @contextlib.contextmanager
    def _evaluated(self, name: str, plan: Plan) -> Iterator[tuple[Any, Any, str | None]]:
        """Model, processor and system prompt of vanilla, unlearned or gold, while time counts."""
        model, processor = self.loaded if name != "gold" else self._load(str(self.config.gold))
        edited = name == "unlearned"
        with contextlib.ExitStack() as stack:
            if edited:
                stack.enter_context(applied(model, plan))
            stack.enter_context(self.timed("evaluate"))
            yield model, processor, plan.system_prompt if edited else None

    def ask(
        self,
        name: str,
        model: Any,
        processor: Any,
        system: str | None = None,
        said: list[dict[str, str]] | None = None,
    ) -> dict[str, Any]:
        """The figures of a model on the suite, asked under a system prompt or none.

        Questions and answers of the forget set are added to `said`.
        """

        def hear(group: str, condition: str, answers: list[Answered]) -> None:
            if group == "forget" and said is not None:
                said.extend(answer.shown(condition) for answer in answers)

        asked = Suite(self.suite.evaluated).counts()
        total = sum(sum(c.values()) for c in asked.values())
        with self.progress.task(f"evaluate {name}", total, adds=True) as tick:
            return evaluate(
                model,
                processor,
                self.suite,
                prompter=Prompter(processor, system=system, template=self.config.prompt_template),
                batch_size=2 * self.config.batch_size,
                seed=self.config.seed,
                tick=tick,
                hear=hear,
            )

    def check_official(self) -> None:
        """Raise `InputError` where official scoring is wanted and suite or model do not fit it."""
        if self.config.official:
            check(*self.loaded, self.suite, self.config.seed)

    def ask_official(
        self, name: str, model: Any, processor: Any, system: str | None = None
    ) -> dict[str, Any]:
        """The figures of a model on the suite by MLLMU-Bench's own prompts and rules."""
        seed = self.config.seed
        total = sum(len(exam.asked) for exam in exams(model, self.suite, seed))
        with self.progress.task(f"evaluate {name} officially", total, adds=True) as tick:
            return official(model, processor, self.suite, system=system, seed=seed, tick=tick)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's wall seconds to the stage's, across resumed runs."""
        begun = time.perf_counter()
        yield
        seconds = self._seconds()
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - begun
        if leads():
            write_json(self.folder / "seconds.json", seconds)

    def _seconds(self) -> dict[str, float]:
        path = self.folder / "seconds.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def all(self) -> dict[str, Any]:
        """Every stage that is not done yet, in order; returns the results, {} unless it leads."""
        from expunge.report import write_report

        with self.opened():
            plan = self.plan()
            if not leads():
                return {}
            self.apply(plan)
            results = self.evaluate(plan)
            write_report(self.folder, show_content=self.config.show_content)
        return results


def extent(plan: Plan) -> dict[str, int]:
    """How much a plan changes: neurons, sites, and the size of its file's tensors in bytes."""
    neurons = sum(int(i.numel()) for i in plan.neurons().values())
    return {"neurons": neurons, "sites": len(plan.edits), "bytes": plan.bytes}


def evaluate_models(
    models: Mapping[str, str | Path], suite: Suite, config: RunConfig
) -> dict[str, Any]:
    """Figures of several models on one suite, with a summary where there is an unlearned one.

    Args:
        models: `vanilla`, `unlearned` (a checkpoint, or the Path of a plan file that is applied to
            vanilla) and `gold` -> folder or Hub id.
        suite: What to ask.
        config: Batch size, seed, official scoring, prompt template, dtype, device and trust in
            remote code.
    """
    if not suite.sets:
        raise InputError("no question file is given, expected at least one, such as --forget")
    plan = None
    for path in models.values():
        if isinstance(path, Path):
            plan = Plan.load(path)
        else:
            check_checkpoint(path)
    begun = time.perf_counter()
    found: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name, path in models.items():
        edit = plan if isinstance(path, Path) else None
        source = str(models["vanilla"] if edit else path)
        job = Run(Path(), dataclasses.replace(config, model=source), suite)
        job.check_official()
        system = edit.system_prompt if edit else None
        with applied(job.loaded[0], edit) if edit else contextlib.nullcontext():
            found[name] = job.ask(name, *job.loaded, system)
            if config.official:
                own[name] = job.ask_official(name, *job.loaded, system)
    results: dict[str, Any] = {"models": found, **({"official": own} if own else {})}
    if "unlearned" in found:
        results["summary"] = summarise(found)
        results["method"] = plan.method if plan else None
        results["plan"] = extent(plan) if plan else None
    seconds = {"evaluate": time.perf_counter() - begun}
    return {**results, "seconds": seconds, **origin(config, suite)}

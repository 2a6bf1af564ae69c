"""Gradient baselines: LoRA factors on the down projections, trained by an objective and searched.

Every objective sees answer tokens only, and gets the same grid of candidates.
"""

from __future__ import annotations

import contextlib
import math
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data import CONDITIONS, Example
from expunge.encoding import Batch, batches
from expunge.errors import InputError, unknown
from expunge.evaluate import Answers
from expunge.measure import refuse_expert
from expunge.methods.base import Grid, Tuned
from expunge.models import Prompter
from expunge.probe_set import Forcing, ProbeSet
from expunge.sites import Site

BETA = 0.1
CLIP = 1.0
REFUSALS = (
    "I do not know.",
    "I have no information about that.",
    "That is something I cannot tell you.",
    "I am not able to answer this.",
)
RULE = (
    "of the candidates that keep the asked share of the accuracy on held-out retain subjects, the"
    " one with the least forget accuracy, then the greatest forget loss; if none keeps it, the one"
    " that keeps most"
)


@dataclass(frozen=True)
class View:
    """One step's batches as the trained model sees them, and as vanilla did where asked for."""

    forget: Answers
    retain: Answers | None = None
    forget_vanilla: Answers | None = None
    retain_vanilla: Answers | None = None


def _mean(answers: Answers | None) -> Tensor:
    assert answers is not None
    return answers.losses().mean()


def ascent(view: View) -> Tensor:
    """GA: -L(D_f)."""
    return -_mean(view.forget)


def difference(view: View) -> Tensor:
    """GradDiff: -L(D_f) + L(D_r)."""
    return -_mean(view.forget) + _mean(view.retain)


def divergence(view: View) -> Tensor:
    """KL: -L(D_f) + mean_t KL(p_vanilla || p_theta) on D_r."""
    assert view.retain is not None and view.retain_vanilla is not None
    then, now = view.retain_vanilla.logp, view.retain.logp
    return -_mean(view.forget) + (then.exp() * (then - now)).sum(-1).mean()


def preference(view: View) -> Tensor:
    """NPO: (2/beta) E_f log(1 + (p_theta(y|x) / p_vanilla(y|x))^beta), y the whole answer."""
    assert view.forget_vanilla is not None
    odds = BETA * (view.forget.totals() - view.forget_vanilla.totals())
    return 2 / BETA * nn.functional.softplus(odds).mean()


def preference_retain(view: View) -> Tensor:
    """NPO + L(D_r)."""
    return preference(view) + _mean(view.retain)


def refusal(view: View) -> Tensor:
    """IdkNLL: L(D_f with refusals for answers) + L(D_r)."""
    return _mean(view.forget) + _mean(view.retain)


@dataclass(frozen=True)
class Objective:
    """A loss and the parts of a `View` that it reads beside `forget`."""

    loss: Callable[[View], Tensor]
    reads: tuple[str, ...] = ()
    refuses: bool = False


OBJECTIVES = {
    "ga": Objective(ascent),
    "graddiff": Objective(difference, ("retain",)),
    "kl": Objective(divergence, ("retain", "retain_vanilla")),
    "npo": Objective(preference, ("forget_vanilla",)),
    "npo-retain": Objective(preference_retain, ("forget_vanilla", "retain")),
    "idk": Objective(refusal, ("retain",), refuses=True),
}


@dataclass
class Adapters:
    """LoRA factors that are part of a model inside `adapters`.

    Attributes:
        layers: Site key -> peft's layer.
        off: Context manager inside which the model is vanilla.
    """

    layers: dict[str, Any]
    off: Callable[[], contextlib.AbstractContextManager[None]]

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for layer in self.layers.values() for p in layer.parameters() if p.requires_grad]

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Copies of (A [out, rank], B [rank, width]) by site key, float32 on the CPU."""
        found = {}
        for key, layer in self.layers.items():
            a = layer.lora_B["default"].weight.detach() * layer.scaling["default"]
            b = layer.lora_A["default"].weight.detach()
            found[key] = (a.float().cpu().contiguous(), b.float().cpu().clone().contiguous())
        return found


@contextlib.contextmanager
def adapters(model: Any, sites: Sequence[Site], rank: int, seed: int) -> Iterator[Adapters]:
    """Within the block the down projections carry LoRA factors; afterwards the model is as before.

    Args:
        model: A transformers model.
        sites: Where; none may be an expert.
        rank: Rank of the factors; the update starts at zero.
        seed: Of the first factors.
    """
    from peft import LoraConfig, get_peft_model

    for site in sites:
        refuse_expert(site)
    paths = {site.key: site.path for site in sites}
    before = [(p, p.requires_grad) for p in model.parameters()]
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        target_modules="|".join(re.escape(path) for path in paths.values()),
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config)
    try:
        layers = {key: model.get_submodule(path) for key, path in paths.items()}
        yield Adapters(layers, wrapped.disable_adapter)
    finally:
        wrapped.unload()
        if hasattr(model, "peft_config"):
            del model.peft_config
        for parameter, required in before:
            parameter.requires_grad_(required)


def held_out(rows: Sequence[Example], share: float, seed: int) -> tuple[list[Example], ...]:
    """Part rows into (train, held out) by subject; rows of a single subject part by row."""
    subjects = sorted({e.subject for e in rows})
    units: Sequence[Any] = subjects if len(subjects) > 1 else range(len(rows))
    order = random.Random(seed).sample(list(units), len(units))
    out = set(order[: min(max(1, round(share * len(order))), len(order) - 1)])
    inside = [(e.subject if len(subjects) > 1 else i) in out for i, e in enumerate(rows)]
    train = [e for e, o in zip(rows, inside, strict=True) if not o]
    return train, [e for e, o in zip(rows, inside, strict=True) if o] or train


def drawn(rows: Sequence[Example], size: int, seed: int) -> Iterator[list[Example]]:
    """Random batches for ever, every row once before any comes again."""
    chance = random.Random(seed)
    while True:
        order = chance.sample(range(len(rows)), len(rows))
        for at in range(0, len(order), size):
            yield [rows[i] for i in order[at : at + size]]


@dataclass
class Search:
    """A search over training runs for one objective on one model.

    Attributes:
        model: The model; as before when the search is over.
        prompter: How conversations are rendered.
        forget: What is to be forgotten.
        retain: What is to be kept; a part is held out to choose by.
        sites: Whose down projections are trained.
        objective: A name in `OBJECTIVES`.
        grid: The candidates.
        keep: Share of vanilla's accuracy on the held-out rows that must stay.
        seed: Of everything random.
        batch_size: Questions per pass when a candidate is looked at.
        tick: Called with 1 after each step.
    """

    model: Any
    prompter: Prompter
    forget: Sequence[Example]
    retain: Sequence[Example]
    sites: Sequence[Site]
    objective: str
    grid: Grid = field(default_factory=Grid)
    keep: float = 0.97
    seed: int = 0
    batch_size: int = 64
    tick: Callable[[int], None] = lambda done: None

    def run(self) -> Tuned:
        """Train every candidate and choose.

        Raises:
            InputError: An unknown objective, an empty set, or every candidate diverged.
        """
        if self.objective not in OBJECTIVES:
            raise unknown("objective", self.objective, OBJECTIVES)
        train, out = held_out(self.retain, self.grid.held_out, self.seed)
        probes = {"forget": self._probes(self.forget), "retain": self._probes(out)}
        vanilla = self._look(probes)
        candidates: list[dict[str, Any]] = []
        factors = []
        for rate in self.grid.rates:
            for steps, found in self._trained(rate, train):
                with_factors = {"rate": rate, "steps": steps, **self._look(probes)}
                candidates.append(with_factors)
                factors.append(found)
        best = choose(candidates, self.keep * vanilla["retain_accuracy"])
        notes = {
            "objective": self.objective,
            "rank": self.grid.rank,
            "batch_size": self.grid.batch_size,
            "rule": RULE,
            "keep": self.keep,
            "held_out_questions": len(out),
            "vanilla": vanilla,
            "candidates": [_plain(c) for c in candidates],
            "chosen": {k: candidates[best][k] for k in ("rate", "steps")},
        }
        return Tuned(factors[best], notes)

    def _probes(self, rows: Sequence[Example]) -> list[ProbeSet]:
        made = [
            ProbeSet(self.model, self.prompter, rows, c, batch_size=self.batch_size)
            for c in CONDITIONS
        ]
        return [p for p in made if p.size]

    def _look(self, probes: Mapping[str, Sequence[ProbeSet]]) -> dict[str, float]:
        """Accuracy and loss on both sets, the mean over conditions."""
        scores = {}
        for name, each in probes.items():
            seen: list[Forcing] = [p.run(self.model) for p in each]
            scores[f"{name}_accuracy"] = sum(f.accuracy for f in seen) / len(seen)
            scores[f"{name}_nll"] = sum(f.mean_nll for f in seen) / len(seen)
        return scores

    def _trained(
        self, rate: float, train: Sequence[Example]
    ) -> Iterator[tuple[int, dict[str, tuple[Tensor, Tensor]]]]:
        """Train at one rate; yield (steps, factors) at every number of steps looked at."""
        views = self._views(train)
        with adapters(self.model, self.sites, self.grid.rank, self.seed) as lora:
            weights = lora.parameters()
            optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
            for step in range(1, max(self.grid.steps) + 1):
                with torch.enable_grad():
                    loss = OBJECTIVES[self.objective].loss(self._view(next(views), lora))
                    optimiser.zero_grad()
                    torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(weights, CLIP)
                optimiser.step()
                self.tick(1)
                if step in self.grid.steps:
                    yield step, lora.factors()

    def _views(self, train: Sequence[Example]) -> Iterator[dict[str, Batch]]:
        """Batches of forget and retain, the conditions by turns."""
        reads = OBJECTIVES[self.objective].reads
        needs = {"forget": self.forget, **({"retain": train} if "retain" in reads else {})}
        streams: list[dict[str, tuple[str, Iterator[list[Example]]]]] = []
        for condition in CONDITIONS:
            if not any(e.has(condition) for e in self.forget):
                continue
            streams.append({n: self._stream(rows, condition) for n, rows in needs.items()})
        while True:
            for each in streams:
                yield {n: self._batch(n, next(rows), c) for n, (c, rows) in each.items()}

    def _stream(
        self, rows: Sequence[Example], condition: str
    ) -> tuple[str, Iterator[list[Example]]]:
        """Batches under `condition`, or under the other where no row has that one."""
        if not any(e.has(condition) for e in rows):
            condition = next(c for c in CONDITIONS if c != condition)
        usable = [e for e in rows if e.has(condition)]
        if not usable:
            raise InputError("no question of the set has an image or a text form to train on")
        return condition, drawn(usable, self.grid.batch_size, self.seed)

    def _batch(self, name: str, rows: Sequence[Example], condition: str) -> Batch:
        answers = None
        if name == "forget" and OBJECTIVES[self.objective].refuses:
            answers = [refusal_for(e, self.seed) for e in rows]
        made = batches(
            self.model, self.prompter, rows, condition, batch_size=len(rows), answers=answers
        )
        return next(iter(made))

    def _view(self, batch: Mapping[str, Batch], lora: Adapters) -> View:
        reads = OBJECTIVES[self.objective].reads
        found = {name: Answers.of(self.model, each) for name, each in batch.items()}
        for name, each in batch.items():
            if f"{name}_vanilla" in reads:
                with torch.no_grad(), lora.off():
                    found[f"{name}_vanilla"] = Answers.of(self.model, each)
        return View(**found)


def refusal_for(example: Example, seed: int) -> str:
    """One of `REFUSALS`, a function of the question and the seed."""
    words = example.text_question or example.question or ""
    return random.Random(f"{seed} {words}").choice(REFUSALS)


def choose(candidates: Sequence[Mapping[str, float]], least: float) -> int:
    """Index of the best candidate by `RULE`.

    Args:
        candidates: Each with forget and retain accuracy and loss.
        least: Accuracy on the held-out rows that must stay.

    Raises:
        InputError: No candidate has finite losses.
    """
    sound = [
        i
        for i, c in enumerate(candidates)
        if math.isfinite(c["forget_nll"]) and math.isfinite(c["retain_nll"])
    ]
    if not sound:
        raise InputError(
            f"training diverged at every learning rate tried ({len(candidates)} candidates); run"
            " in float32, or take a method without training"
        )
    kept = [i for i in sound if candidates[i]["retain_accuracy"] >= least]
    if kept:
        return min(
            kept, key=lambda i: (candidates[i]["forget_accuracy"], -candidates[i]["forget_nll"])
        )
    return max(
        sound, key=lambda i: (candidates[i]["retain_accuracy"], -candidates[i]["forget_accuracy"])
    )


def _plain(candidate: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no infinity: what is not finite becomes None."""
    return {k: v if math.isfinite(v) else None for k, v in candidate.items()}

"""Linear probes: whether a layer still tells the forgotten answers apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge import metrics
from expunge.attacks.base import ASKED_WITH, MODELS, Attack, Candidate, Context, Result
from expunge.attacks.states import prompt_states
from expunge.data import CONDITIONS, Example

TRAIN, TEST = 512, 192
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)

Places = dict[str, tuple[list[int], list[int]]]  # attribute -> rows of retain, rows of forget


def labels(examples: Sequence[Example]) -> NDArray[np.str_]:
    """Normalised answers, the classes of the probes."""
    return np.array([metrics.normalise(e.answer) for e in examples])


def tasks(retain: Sequence[Example], forget: Sequence[Example]) -> Places:
    """Attributes that can be probed: several answers on retain, and forget answers among them."""
    places: Places = defaultdict(lambda: ([], []))
    for side, examples in enumerate((retain, forget)):
        for i, example in enumerate(examples):
            places[example.attribute or ""][side].append(i)
    known, asked = labels(retain), labels(forget)
    found: Places = {}
    for attribute, (train, test) in places.items():
        classes = set(known[train])
        test = [i for i in test if asked[i] in classes]
        if len(classes) > 1 and test:
            found[attribute] = (train, test)
    return found


def probed(
    train_x: NDArray[Any], train_y: NDArray[Any], test_x: NDArray[Any], test_y: NDArray[Any]
) -> NDArray[np.bool_]:
    """Which test rows a ridge classifier on standardised features gets right, bool [rows].

    Its strength is chosen among `STRENGTHS` by leave-one-out on the training rows.
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=STRENGTHS))
    return np.asarray(probe.fit(train_x, train_y).predict(test_x) == test_y)


def layer_accuracies(
    candidate: Candidate,
    retain: Sequence[Example],
    forget: Sequence[Example],
    condition: str,
    batch_size: int,
) -> list[float]:
    """Accuracy of the probes on forget by layer, over all attributes together."""
    places = tasks(retain, forget)
    train, test = (
        prompt_states(candidate, rows, condition, batch_size)[0].numpy()
        for rows in (retain, forget)
    )
    known, asked = labels(retain), labels(forget)
    found = []
    for layer in range(train.shape[1]):
        right = [
            probed(train[a, layer], known[a], test[b, layer], asked[b]) for a, b in places.values()
        ]
        found.append(float(np.concatenate(right).mean()))
    return found


def guessing(retain: Sequence[Example], forget: Sequence[Example]) -> float:
    """Share of forget rows right when always the commonest retain answer is named."""
    known, asked = labels(retain), labels(forget)
    right = []
    for train, test in tasks(retain, forget).values():
        values, counts = np.unique(known[train], return_counts=True)
        right.append(asked[test] == values[counts.argmax()])
    return float(np.concatenate(right).mean())


def run(context: Context) -> Result:
    """Train probes on retain subjects, layer by layer, and test them on forget subjects."""
    rows: list[list[Any]] = []
    curves: dict[str, list[list[float]]] = {}
    figures: dict[str, float | None] = {}
    for condition in CONDITIONS:
        retain = context.sample("retain", condition, TRAIN)
        forget = context.sample("forget", condition, TEST)
        if not tasks(retain, forget):
            continue
        found = {
            name: layer_accuracies(c, retain, forget, condition, context.batch_size)
            for name, c in context.models.items()
        }
        label, chance = ASKED_WITH[condition], guessing(retain, forget)
        for layer in range(len(found["unlearned"])):
            cells = [found[m][layer] if m in found else None for m in MODELS]
            rows.append([layer, label, *cells, chance])
        for name, values in found.items():
            curves[f"{name}, {label}"] = [[i, v] for i, v in enumerate(values)]
        if "gold" in found:
            lead = [u - g for u, g in zip(found["unlearned"], found["gold"], strict=True)]
            figures[f"most above gold, {label}"] = max(lead)
    return {
        "title": "Linear probes",
        "columns": ["layer", "asked with", *MODELS, "commonest answer"],
        "rows": rows,
        "curves": curves,
        "axes": ["layer (0 is the embedding)", "accuracy of the probe"],
        "note": _note(bool(rows)),
        "figures": figures,
    }


def _note(measured: bool) -> str:
    if not measured:
        return (
            "Nothing to probe: no attribute has answers on retain subjects that are also answers of"
            " forget subjects."
        )
    return (
        "Accuracy on forget subjects of a ridge classifier per attribute and layer, trained on"
        " retain subjects' hidden states at the last position of the question; layer 0 is the"
        " embedding. Answers that no retain subject has are left out."
    )


ATTACK = Attack(
    "probe", "a linear probe per layer, trained on retain subjects", run, ("forget", "retain")
)

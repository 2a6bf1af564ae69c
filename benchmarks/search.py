"""The search that a method without one of its own gets: nine settings, the gradients' rule.

`auto` tries at most nine strengths and a gradient baseline three learning rates at three numbers
of steps. So that nobody is judged at an unlucky setting, every method with a budget or a strength
gets nine of them, made with three quarters of the retain subjects and chosen on the fourth by
`expunge.tune.RULE`, the rule of the gradient baselines.
"""

import dataclasses
import json
import time

from expunge.data import CONDITIONS
from expunge.edit import edited
from expunge.evidence import gather
from expunge.folder import write_json
from expunge.methods import get
from expunge.methods.base import Grid
from expunge.models import Prompter
from expunge.planning import chosen_sites, settled
from expunge.probe_set import ProbeSet
from expunge.tune import RULE, choose, held_out

BUDGETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def settings_of(method):
    """What is tried: ("budget" or "strength", values), or None for a method without either."""
    if method.budget is not None:
        return "budget", BUDGETS
    return ("strength", STRENGTHS) if method.strength is not None else None


def searched(name, config, suite, loaded, folder):
    """The setting to run a method at, found once per task and then read from its folder.

    Returns:
        {"setting", "values", "chosen", "rule", "vanilla", "candidates", "seconds"}, or None where
        there is nothing to search or the method searches itself.
    """
    method, path = get(name), folder / "search" / f"{name}.json"
    tried = settings_of(method)
    if tried is None:
        return None
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    begun = time.perf_counter()
    vanilla, candidates = candidates_of(method, config, suite, loaded, tried)
    best = choose(candidates, config.keep * vanilla["retain_accuracy"])
    found = {
        "setting": tried[0],
        "values": list(tried[1]),
        "chosen": tried[1][best],
        "rule": RULE,
        "vanilla": vanilla,
        "candidates": candidates,
        "seconds": time.perf_counter() - begun,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return found


def candidates_of(method, config, suite, loaded, tried):
    """Figures of vanilla and of every candidate on forget and on the retain subjects held out."""
    model, processor = loaded
    prompter = Prompter(processor)
    config = settled(dataclasses.replace(config, method=method.name))
    train, out = held_out(suite.sets["retain"], Grid().held_out, config.seed)
    sets = {"forget": suite.sets["forget"], "retain": train}
    sites = chosen_sites(model, config)
    evidence = gather(model, prompter, sets, sites, config, method)
    probes = {
        n: [ProbeSet(model, prompter, rows, c) for c in CONDITIONS]
        for n, rows in (("forget", sets["forget"]), ("retain", out))
    }
    found = []
    for value in tried[1]:
        edits = method.decide(evidence, dataclasses.replace(config, **{tried[0]: value})).edits
        with edited(model, {s.key: s for s in sites}, edits):
            found.append({tried[0]: value, **look(model, probes)})
    return look(model, probes), found


def look(model, probes):
    """Accuracy and loss of the model as it is on each set, the mean over conditions."""
    scores = {}
    for name, each in probes.items():
        seen = [p.run(model) for p in each if p.size]
        scores[f"{name}_accuracy"] = sum(f.accuracy for f in seen) / len(seen)
        scores[f"{name}_nll"] = sum(f.mean_nll for f in seen) / len(seen)
    return scores

"""What the filter's constants do: neighbours kept at equal depth of forgetting.

    python benchmarks/frontier.py [--group 1]

For each ridge, onset and overshoot the strength grows until the held-out questions of the forget
people reach a mean NLL of 1.5 and 2.5 nats a token; printed is what neighbours and skills then
still recall (interpolated between strengths). Tune on groups other than 0.
"""

import argparse
import itertools

from expunge.cli import quiet

quiet()

from expunge.config import RunConfig
from expunge.data import CONDITIONS
from expunge.edit import edited
from expunge.fiction.shipped import checkpoint, suite
from expunge.methods import METHODS, auto
from expunge.methods.filters import edits_for, moment
from expunge.models import Prompter, load
from expunge.pipeline import chosen_sites, gather, settled
from expunge.probe_set import ProbeSet
from expunge.subspace import directions, shares

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
DEPTHS = (1.5, 2.5)


def figures(model, sites, probes, edits):
    with edited(model, sites, edits):
        found = {key: p.run(model) for key, p in probes.items() if p.size}

    def mean(name, what):
        values = [getattr(f, what) for (n, _), f in found.items() if n == name]
        return sum(values) / len(values)

    return mean("test", "mean_nll"), mean("neighbor", "accuracy"), mean("skills", "accuracy")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--group", type=int, default=1)
    group = parser.parse_args().group
    questions = suite(10, group).sets
    model, processor = load(checkpoint("vanilla"))
    prompter = Prompter(processor)
    config = settled(RunConfig(method="filter"))
    sites = chosen_sites(model, config)
    sets = {"forget": questions["forget"], "retain": questions["retain"]}
    evidence = gather(model, prompter, sets, sites, config, METHODS["filter"])
    probes = {
        (n, c): ProbeSet(model, prompter, questions[n], c)
        for n in ("test", "neighbor", "skills")
        for c in CONDITIONS
    }
    pairs = {
        s.key: (moment(evidence, ("forget",), s.key), moment(evidence, ("retain",), s.key))
        for s in sites
    }
    for ridge in (0.03, 0.3, 1.0):
        found = {
            k: directions(f, r, ridge=ridge, number=auto.NUMBER) for k, (f, r) in pairs.items()
        }
        for onset, over in itertools.product((0.0, 2.0), (0.0, 1.0)):
            path = []
            for strength in STRENGTHS:
                removed = {
                    k: (1 + over) * shares(d.ratio, strength, onset) for k, d in found.items()
                }
                edits = edits_for(evidence, found, removed)
                path.append(figures(model, {s.key: s for s in sites}, probes, edits))
            told = [f"ridge {ridge:<5} onset {onset} overshoot {over}"]
            for depth in DEPTHS:
                told.append(at_depth(path, depth))
            print(" | ".join(told), flush=True)


def at_depth(path, depth):
    for (n0, k0, s0), (n1, k1, s1) in itertools.pairwise(path):
        if n0 < depth <= n1:
            t = (depth - n0) / (n1 - n0)
            kept, skill = k0 + t * (k1 - k0), s0 + t * (s1 - s0)
            return f"NLL {depth}: neighbours {kept:.3f}, skills {skill:.3f}"
    return f"NLL {depth}: not reached"


if __name__ == "__main__":
    main()

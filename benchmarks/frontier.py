"""What the default method's constants do: neighbours kept at equal depth of forgetting.

    python benchmarks/frontier.py [--group 1]

For each choice of positions, weight of noise, onset and overshoot the strength grows until the
held-out questions of the forget people reach a mean NLL of 1.5, 2.5 and 3.3 nats a token. Printed
is what neighbours, public figures and skills then still recall, both conditions together
(interpolated between strengths). The shipped constants were chosen on groups 0, 1 and 2.
"""

import argparse
import itertools

from expunge.cli import quiet

quiet()

from expunge.config import RunConfig
from expunge.data import CONDITIONS
from expunge.edit import edited
from expunge.evidence import gather
from expunge.fiction.shipped import checkpoint, suite
from expunge.methods import METHODS, auto
from expunge.methods.filters import edits_for, site_directions
from expunge.models import Prompter, load
from expunge.pipeline import chosen_sites, settled
from expunge.probe_set import ProbeSet
from expunge.subspace import shares

STRENGTHS = (0.05, 0.1, 0.17, 0.3, 0.5, 0.8, 1.3, 2.5)
DEPTHS = (1.5, 2.5, 3.3)
KEPT = ("neighbor", "real", "skills")


def figures(model, sites, probes, edits):
    """Mean NLL of `test`, then the accuracy of what is kept."""
    with edited(model, sites, edits):
        found = {key: p.run(model) for key, p in probes.items() if p.size}

    def mean(name, what):
        values = [getattr(f, what) for (n, _), f in found.items() if n == name]
        return sum(values) / len(values)

    return mean("test", "mean_nll"), *(mean(name, "accuracy") for name in KEPT)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--group", type=int, default=1)
    questions = suite(10, parser.parse_args().group).sets
    model, processor = load(checkpoint("vanilla"))
    prompter = Prompter(processor)
    sets = {"forget": questions["forget"], "retain": questions["retain"]}
    probes = {
        (n, c): ProbeSet(model, prompter, questions[n], c)
        for n in ("test", *KEPT)
        for c in CONDITIONS
    }
    for positions in ("all", "no_image"):
        config = settled(RunConfig(method="auto", positions=positions))
        sites = chosen_sites(model, config)
        evidence = gather(model, prompter, sets, sites, config, METHODS["auto"])
        folds = sorted({name for name, _ in evidence.moments} - {"forget", "noise"})
        for noise in (0.0, 0.5, 2.0):
            (found,) = site_directions(evidence, auto.RIDGE, [folds], auto.NUMBER, noise)
            for onset, over in itertools.product((0.0, 2.0), (0.0, 1.0)):
                path = []
                for strength in STRENGTHS:
                    removed = {
                        k: (1 + over) * shares(d.ratio, strength, onset) for k, d in found.items()
                    }
                    edits = edits_for(evidence, found, removed)
                    path.append(figures(model, {s.key: s for s in sites}, probes, edits))
                told = [f"{positions:<8} noise {noise} onset {onset} overshoot {over}"]
                print(" | ".join(told + [at_depth(path, d) for d in DEPTHS]), flush=True)


def at_depth(path, depth):
    for (n0, *before), (n1, *after) in itertools.pairwise(path):
        if n0 < depth <= n1:
            t = (depth - n0) / (n1 - n0)
            left = " / ".join(f"{a + t * (b - a):.3f}" for a, b in zip(before, after, strict=True))
            return f"NLL {depth}: {left}"
    return f"NLL {depth}: not reached"


if __name__ == "__main__":
    main()

"""What the default method's constants do: neighbours kept at equal depth of forgetting.

    python benchmarks/frontier.py [--group 1]

For each view of image+text, weight of noise and power the strength of both conditions grows until
the held-out questions of the forget people reach a mean NLL of 1.5, 2.5 and 3.3 nats a token.
Printed is what neighbours, public figures and skills then still recall, both conditions together
(interpolated between strengths). The shipped constants were chosen on groups 0, 1 and 2.
"""

import argparse
import itertools

from expunge.console import quiet

quiet()

from expunge.config import RunConfig
from expunge.data import CONDITIONS
from expunge.edit import edited
from expunge.evidence import gather
from expunge.fiction.shipped import checkpoint, suite
from expunge.methods import METHODS, filter_search
from expunge.methods.base import PICTURE
from expunge.models import Prompter, load
from expunge.planning import chosen_sites, settled
from expunge.probe_set import ProbeSet

STRENGTHS = (1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.0)
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
    config = settled(RunConfig(method="filter-search"))
    sites = chosen_sites(model, config)
    by_key = {s.key: s for s in sites}
    evidence = gather(model, prompter, sets, sites, config, METHODS["filter-search"])
    for noise in (0.0, 0.5, 2.0):
        (found,) = filter_search.views_of(evidence, [evidence.kept], noise)
        for view, power in itertools.product(("multi", PICTURE), (1.0, 2.0, 4.0)):
            scales = filter_search.scales_of(found, {"multi": (view,), "text": ("text",)})
            path = []
            for strength in STRENGTHS:
                both = dict.fromkeys(CONDITIONS, strength)
                edits = filter_search.edits_at(evidence, found, scales, both, None, power)
                path.append(figures(model, by_key, probes, edits))
            told = [f"noise {noise} view {view:<7} power {power}"]
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

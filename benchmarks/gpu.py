"""The whole run at LLaVA-1.5-7B's sizes on a GPU, random weights in bfloat16: benchmarks/gpu.json.

    python benchmarks/gpu.py [PART ...]           # on a GPU of 80 GB or more
    python benchmarks/gpu.py --shape tiny --people 2 --each 2 --out cpu.json --dtype float32

350 forget and 350 retain questions (25 people, 14 questions each), with picture and as text. Times
a plan of each method from questions to edited weights, takes the ratios of collecting to the bare
forward passes over the same batches, and lists the 30 slowest kernels of the plan.
"""

import argparse
import statistics
import time
from pathlib import Path

from expunge.console import quiet

quiet()

import torch
from shapes import (
    HERE,
    SHAPES,
    build,
    encoded,
    forward,
    interleaved,
    keep,
    questions,
    ratio,
    synchronise,
)
from speed import a_tenth
from torch.profiler import ProfilerActivity, profile

from expunge.collect import Counting, collect_inputs
from expunge.edit import applied
from expunge.models import Prompter
from expunge.planning import make_plan
from expunge.sites import find_sites


def whole(model, processor, sets, chosen):
    """Seconds from questions to an edited model, by method."""
    found = {}
    for method in chosen.methods:
        synchronise()
        begun = time.perf_counter()
        plan = make_plan(
            model,
            processor,
            sets["forget"],
            sets["retain"],
            method=method,
            memory=chosen.memory,
            batch_size=chosen.batch_size,
        )
        with applied(model, plan):
            synchronise()
            seconds = time.perf_counter() - begun
        passes = plan.provenance.get("passes", [])
        found[method] = {"seconds": seconds, "sites": len(plan.edits), "passes": len(passes)}
    return found


def ratios(model, processor, sets, chosen):
    """Collecting over forward passes: neuron statistics, second moments over all and a tenth."""
    rows = sets["forget"][: 2 * chosen.batch_size]
    feed = encoded(model, Prompter(processor), rows, "multi", chosen.batch_size)
    tenth = [a_tenth(batch) for batch in feed]
    sites = [s for s in find_sites(model) if not s.dead]
    text = [s for s in sites if s.tower == "language"][: chosen.moment_sites]
    second = {"sites": text, "neurons": False, "moments": True}
    jobs = {
        "forward": lambda: forward(model, feed),
        "neurons": lambda: collect_inputs(model, feed, sites=sites),
        "moments": lambda: collect_inputs(model, feed, **second),
        "tenth": lambda: collect_inputs(model, tenth, **second, counting=Counting("answer")),
    }
    seconds = interleaved(jobs, chosen.repeats)
    found = {name: ratio(seconds, name, "forward") for name in jobs if name != "forward"}
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return found | {"moment_sites": len(text), "seconds": medians}


def kernels(model, processor, sets, chosen):
    """The 30 slowest kernels of a plan by the first method, seconds each."""
    kinds = [ProfilerActivity.CPU]
    kinds += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    given = (model, processor, sets["forget"][:8], sets["retain"][:8])
    with profile(activities=kinds) as seen:
        make_plan(*given, method=chosen.methods[0], batch_size=chosen.batch_size)
    field = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    events = sorted(seen.key_averages(), key=lambda e: getattr(e, field), reverse=True)[:30]
    return [
        {"name": e.key[:100], "seconds": getattr(e, field) / 1e6, "calls": e.count} for e in events
    ]


PARTS = {"run": whole, "ratios": ratios, "kernels": kernels}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--shape", default="7b", choices=SHAPES)
    parser.add_argument("--people", type=int, default=25)
    parser.add_argument("--each", type=int, default=14, help="questions a person")
    parser.add_argument("--methods", nargs="+", default=["manu", "filter"])
    parser.add_argument("--memory", default=None, help="as for expunge run, such as 40GiB")
    parser.add_argument("--moment-sites", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, default=HERE / "gpu.json")
    chosen = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = build(chosen.shape, device, getattr(torch, chosen.dtype))
    sets = questions(chosen.people, chosen.each)
    about = {"shape": chosen.shape, "questions": {n: len(rows) for n, rows in sets.items()}}
    for name in chosen.parts or PARTS:
        if name not in PARTS:
            parser.error(f"there is no part {name}, expected some of {', '.join(PARTS)}")
        found = PARTS[name](model, processor, sets, chosen)
        keep(chosen.out, name, {**about, name: found})


if __name__ == "__main__":
    main()

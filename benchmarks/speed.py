"""How much more than the forward passes everything costs: benchmarks/speed.json.

    python benchmarks/speed.py [PART ...] [--shape 135m] [--repeats 7]

Every ratio is taken inside one run, between jobs that take turns, as the median over the repeats.
Without arguments all parts run, in this order:

neurons     collecting neuron statistics / bare forward passes over the same batches
moments     the same with second moments, over all positions and over a tenth of them
memory      peak extra memory of collecting from 100 and from 10,000 rows
site        selection, filter solve and edit / a Cholesky factor, at the shape of one language
            site of LLaVA-1.5-7B
save        its 32 language sites pruned and written / written
evaluate    evaluation / forward passes over its teacher-forced batches, questions a second
end         a whole plan / forward passes over its data, embedded world and the shape
processes   collecting in two processes of one thread / in one
"""

import argparse
import ctypes
import gc
import resource
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from expunge.console import quiet

quiet()

import torch
from safetensors.torch import save_file
from shapes import (
    HERE,
    SHAPES,
    build,
    config_for,
    encoded,
    forward,
    interleaved,
    keep,
    processor_for,
    questions,
    ratio,
)
from torch.multiprocessing import spawn
from transformers import LlavaForConditionalGeneration

from expunge.collect import Counting, collect_inputs, collect_statistics
from expunge.data import CONDITIONS, Suite
from expunge.edit import apply
from expunge.evaluate import evaluate
from expunge.fiction.shipped import checkpoint, suite
from expunge.models import Prompter, load
from expunge.plan import Plan, SiteEdit
from expunge.planning import make_plan
from expunge.selection import select
from expunge.sites import down_module, find_sites
from expunge.subspace import compressed, directions, lowrank_edit, shares

OUT = HERE / "speed.json"


def task(chosen):
    """Model, sites and four encoded batches of the shape."""
    model, processor = build(chosen.shape)
    rows = questions(16, chosen.batch_size // 4)["forget"]
    feed = encoded(model, Prompter(processor), rows, "multi", chosen.batch_size)
    return model, [s for s in find_sites(model) if not s.dead], feed


def neurons(chosen):
    model, sites, feed = task(chosen)
    jobs = {
        "forward": lambda: forward(model, feed),
        "neurons": lambda: collect_inputs(model, feed, sites=sites),
    }
    seconds = interleaved(jobs, chosen.repeats)
    return {"shape": chosen.shape, "ratio": ratio(seconds, "neurons", "forward")}


def a_tenth(batch):
    """The batch with every tenth position that holds a token declared to lead to the answer."""
    turn = batch.mask.cumsum(1) % 10 == 0
    answer = torch.zeros_like(batch.answer)
    answer[:, 1:] = (turn & batch.mask)[:, :-1]
    return replace(batch, answer=answer)


def moments(chosen):
    model, sites, feed = task(chosen)
    sites = [s for s in sites if s.tower in ("connector", "language")]
    tenth = [a_tenth(batch) for batch in feed]
    common = {"sites": sites, "neurons": False, "moments": True}
    answer = Counting("answer")
    jobs = {
        "forward": lambda: forward(model, feed),
        "all": lambda: collect_inputs(model, feed, **common),
        "tenth": lambda: collect_inputs(model, tenth, **common, counting=answer),
    }
    seconds = interleaved(jobs, chosen.repeats)
    extra, whole = (work(SHAPES[chosen.shape], feed)[k] for k in ("moments", "forward"))
    return {
        "shape": chosen.shape,
        "all": ratio(seconds, "all", "forward"),
        "tenth": ratio(seconds, "tenth", "forward"),
        "arithmetic": {"all": 1 + extra / whole, "tenth": 1 + extra / whole / 10},
        "forward_flops_a_second": whole / statistics.median(seconds["forward"]),
    }


def work(shape, feed):
    """Multiply-adds, twice, of the forward passes and of 2 width^2 a token and site."""
    layers, hidden, width, heads, shared = shape.layers
    text = sum(int(batch.mask.numel()) for batch in feed)
    each = hidden * hidden * (2 + 2 * shared / heads) + 3 * hidden * width
    depth, inner, wide, _ = shape.vision
    patches = sum(len(batch.mask) for batch in feed) * (shape.image_tokens + 1)
    seen = 2 * patches * depth * (4 * inner * inner + 2 * inner * wide)
    return {
        "forward": 2 * text * layers * each + seen,
        "moments": 2 * text * layers * width**2,
    }


def _peak(_, number, path):
    """Write the peak of collecting beyond what is held after doing so once."""
    torch.set_num_threads(1)
    model, processor = load(checkpoint("vanilla"))
    prompter, rows = Prompter(processor), suite().sets["retain"]
    sites = [s for s in find_sites(model) if not s.dead]
    many = [rows[i % len(rows)] for i in range(number)]
    collect_statistics(model, prompter, rows[:100], "multi", sites=sites, moments=True)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was used once and let go counts for nothing
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    collect_statistics(model, prompter, many, "multi", sites=sites, moments=True)
    path.write_text(str(_status("VmHWM") - before))


def memory(chosen):
    """A fresh process for each size; the rows exist already and count for nothing."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in (100, 10_000):
            path = Path(folder) / str(number)
            spawn(_peak, args=(number, path))
            found[path.name] = int(path.read_text())
    return {"bytes": found, "ratio": found["10000"] / found["100"]}


def _status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def site(chosen):
    """Against a Cholesky factor of one of the moments, the least that an exact solver takes."""
    shape = SHAPES["7b"]
    layers, out, width, _, _ = shape.layers
    torch.manual_seed(0)
    scores = {f"language.{i}": torch.rand(width, dtype=torch.float64) for i in range(layers)}

    def second(rows):
        z = torch.randn(rows, width)
        return (z.T @ z / rows).double()

    forget, retain, weight = second(500), second(2000), torch.randn(out, width)

    def solve():
        return directions(forget, retain, ridge=0.03, number=128)

    found = solve()
    edited(weight, found)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    regular = retain + 0.03 * retain.diagonal().mean() * torch.eye(width, dtype=retain.dtype)
    jobs = {
        "factor": lambda: torch.linalg.cholesky(regular),
        "select": lambda: select(scores, 0.02),
        "solve": solve,
        "edit": lambda: edited(weight, found),
    }
    seconds = interleaved(jobs, chosen.repeats)
    return {
        "width": width,
        "out": out,
        "seconds": {name: statistics.median(each) for name, each in seconds.items()},
        "ratio": {name: ratio(seconds, name, "factor") for name in ("select", "solve", "edit")},
        "repeats": chosen.repeats,
        "peak_bytes": peak,
    }


def edited(weight, found):
    a, b, _ = compressed(*lowrank_edit(weight, found, shares(found.ratio, 1.0)), 0.999)
    return weight + a @ b


def save(chosen):
    """Against writing alone; the 32 down projections are all that exists, in bfloat16: 2.9 GB."""
    shape = SHAPES["7b"]
    config = config_for(shape, processor_for(shape).tokenizer)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    sites = [s for s in find_sites(model) if s.tower == "language"]
    for each in sites:
        down_module(model, each).to_empty(device="cpu").weight.data.fill_(0.5)
    scores = {s.key: torch.rand(s.width, dtype=torch.float64) for s in sites}
    about = {s.key: {"tower": s.tower, "path": s.path, "width": s.width} for s in sites}
    with tempfile.TemporaryDirectory(dir=chosen.scratch) as folder:

        def write():
            for each in sites:
                named = {f"{each.path}.weight": down_module(model, each).weight.data}
                save_file(named, Path(folder) / f"{each.key}.safetensors")

        def prune():
            edits = {k: SiteEdit(prune=index) for k, index in select(scores, 0.02).items()}
            apply(model, Plan(edits, about), check=False)
            write()

        seconds = interleaved({"write": write, "prune and write": prune}, chosen.repeats)
        written = sum(p.stat().st_size for p in Path(folder).iterdir())
    return {
        "sites": len(sites),
        "bytes": written,
        "seconds": {name: statistics.median(each) for name, each in seconds.items()},
        "ratio": ratio(seconds, "prune and write", "write"),
        "repeats": chosen.repeats,
    }


def evaluation(chosen):
    model, processor = load(checkpoint("vanilla"))
    sets = Suite.of(forget=suite().sets["forget"][:120])
    prompter = Prompter(processor)
    feed = [
        batch
        for c in CONDITIONS
        for batch in encoded(model, prompter, [e for e in sets.sets["forget"] if e.has(c)], c, 64)
    ]
    jobs = {
        "forward": lambda: forward(model, feed),
        "evaluate": lambda: evaluate(model, processor, sets),
    }
    seconds = interleaved(jobs, chosen.repeats)
    number = sum(len(batch.rows) for batch in feed)
    return {
        "ratio": ratio(seconds, "evaluate", "forward"),
        "questions": number,
        "a_second": number / statistics.median(seconds["evaluate"]),
    }


def end(chosen):
    """Plans by two methods against bare forward passes over the same questions."""
    embedded = {n: suite().sets[n] for n in ("forget", "retain")}
    tasks = {
        "embedded world": (*load(checkpoint("vanilla")), embedded, ("manu", "auto")),
        chosen.shape: (*build(chosen.shape), questions(2, 4), ("manu", "filter")),
    }
    found = {}
    for name, (model, processor, sets, methods) in tasks.items():
        prompter, jobs = Prompter(processor), {}
        feed = [
            batch
            for rows in sets.values()
            for c in CONDITIONS
            for batch in encoded(model, prompter, [e for e in rows if e.has(c)], c, 32)
        ]
        jobs["forward"] = lambda model=model, feed=feed: forward(model, feed)
        for method in methods:
            given = (model, processor, sets["forget"], sets["retain"])
            jobs[method] = lambda given=given, method=method: make_plan(*given, method=method)
        seconds = interleaved(jobs, chosen.repeats)
        found[name] = {
            method: {
                "ratio": ratio(seconds, method, "forward"),
                "seconds": statistics.median(seconds[method]),
            }
            for method in methods
        }
    return found


def _share(rank, number, folder, chosen):
    """What one process does: its share of the batches, timed from when all are ready."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/{number}", rank=rank, world_size=number
    )
    model, processor = build(chosen.shape)
    rows, sites = questions(4, 4)["forget"], find_sites(model)
    given = {"sites": sites, "batch_size": 2, "share": (rank, number)}
    for turn in range(chosen.repeats + 1):
        torch.distributed.barrier()
        begun = time.perf_counter()
        collect_statistics(model, Prompter(processor), rows, "multi", **given)
        torch.distributed.barrier()
        if rank == 0 and turn:
            with (Path(folder) / f"{number}.seconds").open("a") as file:
                file.write(f"{time.perf_counter() - begun}\n")
    torch.distributed.destroy_process_group()


def processes(chosen):
    with tempfile.TemporaryDirectory() as folder:
        for number in (1, 2):
            spawn(_share, args=(number, folder, chosen), nprocs=number)
        one, two = (
            statistics.median(map(float, (Path(folder) / f"{n}.seconds").read_text().split()))
            for n in (1, 2)
        )
    return {"shape": chosen.shape, "speedup": one / two}


PARTS = {
    "neurons": neurons,
    "moments": moments,
    "memory": memory,
    "site": site,
    "save": save,
    "evaluate": evaluation,
    "end": end,
    "processes": processes,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--shape", default="135m", choices=SHAPES)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--scratch", default=None, help="folder for what `save` writes")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    for name in chosen.parts or PARTS:
        if name not in PARTS:
            parser.error(f"there is no part {name}, expected some of {', '.join(PARTS)}")
        keep(chosen.out, name, PARTS[name](chosen))


if __name__ == "__main__":
    main()

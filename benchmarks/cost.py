"""What a run costs by closed formulas: the tables of docs/scale.md.

    python benchmarks/cost.py [--flops 4e14]

FLOPs and bytes follow from the sizes alone. Seconds are FLOPs over a sustained rate: one device's,
given by --flops, else the one that `speed.py moments` measured for the forward pass.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DOC = HERE.parent / "docs" / "scale.md"
MARKS = ("<!-- cost: begin -->\n", "<!-- cost: end -->\n")
ROWS = (10**3, 10**4, 10**5, 10**6)
IMAGE, TEXT = 576, 60
SETS, NUMBER, SWEEPS = 6, 128, 13
"""Sets of the default method (forget and five folds), its directions, its solver's multiplies."""


@dataclass(frozen=True)
class Sizes:
    """A dense gated language model: parameters, layers, hidden size, MLP width."""

    parameters: float
    layers: int
    hidden: int
    width: int


MODELS = {
    "7 B": Sizes(6.7e9, 32, 4096, 11008),
    "72 B": Sizes(72e9, 80, 8192, 29568),
    "400 B": Sizes(405e9, 126, 16384, 53248),
}


def forward(size, rows):
    """FLOPs of one pass over `rows` to forget and as many to keep, with picture and as text.

    Two a parameter and token; attention's products of tokens with tokens and the vision tower are
    left out, each a few percent here.
    """
    return 2 * size.parameters * 2 * rows * (IMAGE + TEXT + TEXT)


def moments(size, rows):
    """FLOPs of second moments at every language site: 2 width^2 a token and site."""
    return 2 * size.width**2 * size.layers * 2 * rows * (IMAGE + TEXT + TEXT)


def solve(size):
    """FLOPs of all eigenproblems of the default method, one for each site and choice of folds.

    A Cholesky factor, then sweeps of two triangular solves and a product.
    """
    block = NUMBER + 16
    each = size.width**3 / 3 + SWEEPS * 4 * size.width**2 * block
    return SETS * size.layers * each


def held(size):
    """Bytes of the second moments: of one site, and of all sites at once."""
    one = 2 * SETS * 8 * size.width**2
    return one, one * size.layers


def least(size):
    """Bytes of `--memory` that one site a pass needs; as many passes as sites then."""
    directions = SETS * size.layers * 3 * 8 * size.width * NUMBER
    return held(size)[0] + 5 * 8 * size.width**2 + directions


def duration(seconds):
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def tables(flops, source):
    lines = [
        "| model | weights, 16 bit | moments of one site / of all | least `--memory` | solve |",
        "|---|---|---|---|---|",
    ]
    for name, size in MODELS.items():
        one, every = held(size)
        lines.append(
            f"| {name} | {2 * size.parameters / 1e9:.0f} GB | {one / 1e9:.1f} /"
            f" {every / 1e9:,.0f} GB | {least(size) / 1e9:.0f} GB |"
            f" {solve(size) / 1e15:.2g} PFLOP |"
        )
    lines += [
        "",
        f"Seconds at {flops:.3g} FLOP/s ({source}):",
        "",
        "| model | rows to delete | forward, PFLOP | moments, PFLOP | MANU | filter, one pass |",
        "|---|---|---|---|---|---|",
    ]
    for name, size in MODELS.items():
        for rows in ROWS:
            run, extra = forward(size, rows), moments(size, rows)
            lines.append(
                f"| {name} | {rows:,} | {run / 1e15:,.3g} | {extra / 1e15:,.3g} |"
                f" {duration(run / flops)} | {duration((run + extra + solve(size)) / flops)} |"
            )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flops", type=float, help="sustained FLOP/s of a device")
    chosen = parser.parse_args()
    flops, source = chosen.flops, "given, not measured"
    if flops is None:
        path = HERE / "speed.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        if "moments" not in known:
            parser.error(f"{path} has no part 'moments'; run speed.py moments, or give --flops")
        part = known["moments"]
        flops = part["forward_flops_a_second"]
        where = part["where"]
        source = f"measured: {part['shape']} shape, {where['device']}, threads: {where['threads']}"
    text = DOC.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    made = before + MARKS[0] + "\n" + tables(flops, source) + "\n" + MARKS[1] + after
    DOC.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()

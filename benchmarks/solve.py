"""How long one site takes to solve: `expunge.subspace.directions` by width.

    python benchmarks/solve.py [--width 1536 11008] [--threads 2] [--number 256]

Each width is solved in a process of its own, in float32, on moments of more forget directions than
are asked for and of fewer retain tokens than neurons, one neuron of which is massive. Printed as
one JSON object a line: seconds, and the most memory the process ever held (moments included).
Asked: less than 1 s at 1536; less than 90 s and 6 GB at 11008, on 2 cores.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

from expunge.console import quiet


def moments(width):
    """Second moments [width, width] on forget and retain, float32, in little memory."""
    import torch

    generator = torch.Generator().manual_seed(0)
    scale = torch.exp(torch.randn(width, generator=generator))
    scale[0] = 1000 * scale.median()
    found = []
    for tokens in (width // 4, width // 2):
        z = torch.randn(tokens, width, generator=generator) * scale
        found.append(z.T @ z / tokens)
    return found


def solve(width, number):
    """Seconds and peak memory of one site."""
    import torch

    from expunge.subspace import directions

    forget, retain = moments(width)
    begun, worked = time.perf_counter(), time.process_time()
    found = directions(forget, retain, number=number)
    seconds, worked = time.perf_counter() - begun, time.process_time() - worked
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    sound = all(bool(torch.isfinite(t).all()) for t in (found.ratio, found.read, found.write))
    return {
        "width": width,
        "number": number,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 3),
        "processor_seconds": round(worked, 3),
        "peak_gb": round(most / 1e9, 2),
        "finite": sound,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, nargs="+", default=[1536, 11008])
    parser.add_argument("--number", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    quiet()
    if len(chosen.width) > 1:
        for width in chosen.width:
            one = [f"--width={width}", f"--number={chosen.number}", f"--threads={chosen.threads}"]
            subprocess.run([sys.executable, __file__, *one], check=True)
        return
    import torch

    torch.set_num_threads(chosen.threads)
    print(json.dumps(solve(chosen.width[0], chosen.number)), flush=True)


if __name__ == "__main__":
    main()

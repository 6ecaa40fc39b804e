"""Steps of models that write much memory with torch's large pages on, as `dgm` sets them, and off.

    python scripts/benchmark_pages.py [--steps 4] [--rounds 2]

Every measurement is a process of its own, for torch reads the setting once; both take turns. Prints the median step
after the first and the peak of the memory. Data are random, of MNIST's and CIFAR-10's shapes.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

CASES = {
    "iwae, MNIST": ("iwae", (1, 28, 28)),
    "neural_ar, MNIST": ("neural_ar", (1, 28, 28)),
    "fvbn, CIFAR-10": ("fvbn", (3, 32, 32)),
    "vae, MNIST": ("vae", (1, 28, 28)),
}


def measure(name: str, steps: int) -> None:
    """Print the seconds of every step, and the peak memory in MiB, as JSON."""
    import torch

    from dgmbench.config import compose, instantiate
    from dgmbench.data import Batch, DataSpec

    torch.set_num_threads(1)
    model_name, shape = CASES[name]
    spec = DataSpec(shape, "discrete", levels=256)
    torch.manual_seed(0)
    model = instantiate(compose("train", [f"model={model_name}"])["model"], spec)
    optimizer, generator = torch.optim.Adam(model.parameters()), torch.Generator().manual_seed(0)
    batch = Batch(torch.randint(256, (100, *shape), dtype=torch.uint8), None, torch.arange(100))
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        optimizer.zero_grad()
        model.loss("model", batch, generator)[0].backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.steps)
        return
    for name in CASES:
        seconds: dict[str, list[float]] = {"0": [], "1": []}
        peak: dict[str, float] = {}
        for _ in range(arguments.rounds):
            for setting, found in seconds.items():
                command = [sys.executable, __file__, "--measure", name, "--steps", str(arguments.steps)]
                environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": setting}
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                result = json.loads(done.stdout)
                found += result["seconds"][1:]
                peak[setting] = max(peak.get(setting, 0), result["peak"])
        off, on = (statistics.median(found) for found in seconds.values())
        print(
            f"{name}: off {off:.2f} s a step and {peak['0']:.0f} MiB, on {on:.2f} s and {peak['1']:.0f} MiB, "
            f"ratio {off / on:.2f}"
        )


if __name__ == "__main__":
    main()

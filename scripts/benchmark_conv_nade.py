"""One pixel's conditional of ConvNADE from its surroundings, beside the whole image's: what a draw pays at each step.

    python scripts/benchmark_conv_nade.py [--batch 100] [--rounds 5]

Prints median times of one step and of all D steps, on one core; both ways are compared first.
"""

import argparse
import statistics
import time
from typing import Any

import torch

from dgmbench.data.spec import DataSpec
from dgmbench.models.autoregressive.conv_nade import ConvNade

CASES: list[tuple[str, DataSpec, dict[str, Any]]] = [
    ("MNIST, binary", DataSpec((1, 28, 28), "binary"), {}),
    ("CIFAR-10, small", DataSpec((3, 32, 32), "discrete", 256), {"channels": 8, "depth": 1, "hidden_sizes": (100,)}),
]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, spec, settings in CASES:
        torch.manual_seed(0)
        model = ConvNade(spec, **settings)
        known = (torch.rand(arguments.batch, spec.dim) < 0.5).float()
        values, which = torch.rand_like(known) * known, torch.randint(spec.dim, (arguments.batch,))
        ways = {"one pixel": model.parameters_of, "whole image": super(ConvNade, model).parameters_of}
        torch.testing.assert_close(*(way(values, known, which) for way in ways.values()), rtol=1e-4, atol=1e-5)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            for way, parameters in ways.items():
                begin = time.perf_counter()
                parameters(values, known, which)
                times[way].append(time.perf_counter() - begin)
        one, whole = (statistics.median(times[way]) for way in ways)
        print(
            f"{name}, {arguments.batch} examples: one pixel {1e3 * one:.2f} ms, whole image {1e3 * whole:.1f} ms, "
            f"ratio {whole / one:.0f}; all {spec.dim} dimensions {one * spec.dim:.1f} s and {whole * spec.dim:.0f} s"
        )


if __name__ == "__main__":
    main()

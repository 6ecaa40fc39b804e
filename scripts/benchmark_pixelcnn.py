"""PixelCNN's cached sampler beside the naive one, a full pass for every pixel and channel, in one process.

    python scripts/benchmark_pixelcnn.py [--size 28] [--channels 1] [--levels 2] [--samples 16] [--features 64]

For the plain, the gated and the class-conditional variants, prints the times of both samplers and their ratio; how many
samples differ (float32); and, in float64, the largest difference of the logits over all pixels. The naive time is
measured over some of its passes, which all cost the same; ``--whole`` runs all of them and compares the samples too.
Times are CPU seconds of this process, which a busy machine changes less.
"""

import argparse
import time

import torch
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.models.autoregressive.pixelcnn import PixelCnn

VARIANTS = ({}, {"conditional": True}, {"gated": True}, {"gated": True, "conditional": True})


@torch.no_grad()
def naive_sample(model: PixelCnn, y: Tensor, generator: torch.Generator) -> Tensor:
    """A full pass for every position of the order, with the noise of ``model.sample``."""
    x = torch.zeros(len(y), *model.spec.shape, dtype=torch.uint8)

    def draw(n: int, order: list[int]) -> None:
        noise = model.noise(n, generator)
        flat = x.view(n, -1)
        for position, i in enumerate(order):
            parameters = model.given(x, y)[:, i]
            if parameters.shape[-1] == 1:
                flat[:, i] = noise[position] < parameters[:, 0].sigmoid()
            else:
                cdf = parameters.softmax(-1).cumsum(-1)
                flat[:, i] = (noise[position][:, None] >= cdf[:, :-1]).sum(1)

    draw(len(y), model.ordering().argsort().tolist())
    return x


@torch.no_grad()
def largest_difference(model: PixelCnn, x: Tensor, y: Tensor) -> float:
    """Between the logits of the cache, fed with x, and those of a full pass."""
    channels, height, width = model.spec.shape
    full = model.given(x, y).unflatten(1, model.spec.shape)
    cache, worst = model.cache(len(x), y), 0.0
    for row in range(height):
        cache.start_row()
        for column in range(width):
            for channel in range(channels):
                difference = cache.read(column, channel) - full[:, channel, row, column]
                worst = max(worst, float(difference.abs().max()))
                cache.write(column, channel, model.scaling(x[:, channel, row, column, None]).to(full.dtype))
    return worst


def seconds(function: object, rounds: int) -> float:
    """The best time of some calls: what other processes do can only add to it."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        function()  # type: ignore[operator]
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"size": 28, "channels": 1, "levels": 2, "samples": 16, "features": 64, "blocks": 7, "threads": 1}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--whole", action="store_true", help="run all passes of the naive sampler")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = (args.channels, args.size, args.size)
    spec = DataSpec(shape, "binary" if args.levels == 2 else "discrete", args.levels, num_classes=10)
    y = torch.arange(args.samples) % 10
    for variant in VARIANTS:
        torch.manual_seed(0)
        model = PixelCnn(spec, features=args.features, blocks=args.blocks, head=args.features, **variant)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)  # stronger dependencies than at the start of a training
            x = model.sample(args.samples, y, generator=torch.Generator().manual_seed(0))
            one_pass = seconds(lambda model=model, x=x: model.given(x, y), 10)
        cached = seconds(lambda model=model: model.sample(args.samples, y), 5)
        note = ""
        if args.whole:
            start = time.process_time()
            again = naive_sample(model, y, torch.Generator().manual_seed(0))
            naive = time.process_time() - start
            note = f"; {int((again != x).flatten(1).any(1).sum())} of {len(x)} samples differ"
        else:
            naive = one_pass * spec.dim
        name = ", ".join(variant) or "plain"
        worst = largest_difference(model.double(), x, y)
        print(
            f"{name}: {args.samples} samples cached {cached:.3f} s, naive {naive:.1f} s, {naive / cached:.0f}x faster"
            f" ({cached / one_pass:.1f} passes' time){note}; float64 logits differ by {worst:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()

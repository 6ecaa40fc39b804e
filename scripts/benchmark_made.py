"""MADE's training step and sampler beside a hand-written step and the D-pass sampler, in one process.

    python scripts/benchmark_made.py [--dim 784] [--hidden 1024] [--samples 64] [--batch 100] [--layers 1]

Prints median times and their ratios; the samples of both samplers are compared first.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.autoregressive.made import Made


def alternate(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of each, taking turns so that a busy machine slows both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 2):
        for function, record in zip((first, second), times, strict=True):
            start = time.perf_counter()
            function()
            if turn >= 2:
                record.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def hand_written_step(model: Made, x: Tensor) -> Callable[[], None]:
    """The same network as a bare loop: weights times fixed masks, BCE, Adam."""
    layers = [nn.Linear(layer.in_features, layer.out_features) for layer in model.net.layers]
    masks = [mask.float() for mask in model.net.layer_masks(0)]
    optimiser = torch.optim.Adam([p for layer in layers for p in layer.parameters()], lr=1e-3)

    def step() -> None:
        target = x.float().flatten(1)
        h = target
        for layer, mask in zip(layers[:-1], masks[:-1], strict=True):
            h = F.relu(F.linear(h, layer.weight * mask, layer.bias))
        logits = F.linear(h, layers[-1].weight * masks[-1], layers[-1].bias)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def our_step(model: Made, x: Tensor) -> Callable[[], None]:
    """The module's loss, backward and optimiser."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        loss, _ = model.loss("model", Batch(x), generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


@torch.no_grad()
def d_pass_sample(model: Made, n: int, generator: torch.Generator) -> Tensor:
    """One full forward pass for each dimension."""
    noise = model.conditionals.noise(n, model.net.linear(0).bias, generator=generator)
    x = torch.zeros(n, model.spec.dim)
    for t, i in enumerate(model.ordering().argsort().tolist()):
        x[:, i] = model.conditionals.draw(model.net(x)[:, i].T, noise[:, t])
    return model.conditionals.raw(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("dim", 784), ("hidden", 1024), ("layers", 1), ("samples", 64), ("batch", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = Made(DataSpec((args.dim,), "binary"), hidden_sizes=(args.hidden,) * args.layers)
    x = torch.randint(0, 2, (args.batch, args.dim), dtype=torch.uint8)

    ours, bare = alternate(our_step(model, x), hand_written_step(model, x), rounds=60)
    print(f"training step, batch {args.batch}: ours {1e3 * ours:.2f} ms, bare {1e3 * bare:.2f} ms, {ours / bare:.2f}x")

    start = time.perf_counter()
    slow = d_pass_sample(model, args.samples, torch.Generator().manual_seed(1))
    naive = time.perf_counter() - start
    fast = model.sample(args.samples, generator=torch.Generator().manual_seed(1))
    differing = (fast != slow).any(1).sum().item()
    quick = []
    for seed in range(5):
        start = time.perf_counter()
        model.sample(args.samples, generator=torch.Generator().manual_seed(seed))
        quick.append(time.perf_counter() - start)
    quickest = statistics.median(quick)
    print(
        f"{args.samples} samples: degree-sorted {quickest:.3f} s, D passes {naive:.2f} s, "
        f"{naive / quickest:.0f}x faster; {differing} of {args.samples} differ (float32)"
    )


if __name__ == "__main__":
    main()

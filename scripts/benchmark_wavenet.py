"""WaveNet's cached sampler beside the naive one, which runs the network on a whole receptive field for every value.

    python scripts/benchmark_wavenet.py [--layers 10] [--channels 32] [--samples 1 64] [--length 20]

Both continue a beginning as long as the receptive field, so that the naive sampler is at its steady state, from the
same uniforms; the values are compared first. For each number of streams, prints the time of a value in both, the ratio,
and the share of a large matrix product's rate that the cached sampler reaches. Times are the process's own (CPU
seconds), the least of some rounds in which the two take turns, so that what else the machine does counts little.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.models.autoregressive.wavenet import WaveNet
from dgmbench.nn.levels import draw_categories


@torch.no_grad()
def naive_continuation(model: WaveNet, x: Tensor, start: int, generator: torch.Generator) -> Tensor:
    """x (n, t) with new values from ``start`` on, each from a pass over the receptive field that ends before it."""
    reach = model.net.receptive_field
    uniform = torch.rand(model.spec.dim, len(x), generator=generator, dtype=model.embedding.weight.dtype)
    x = x.long()
    for t in range(start, x.shape[1]):
        before = F.pad(x[:, :t], (1, 0), value=model.levels)[:, -reach:]
        x[:, t] = draw_categories(model.net(model.embedding(before).transpose(1, 2))[..., -1], uniform[t])
    return x


def matmul_rate() -> float:
    """Multiply-adds a second of a large matrix product on this machine."""
    a = torch.rand(1024, 1024)
    best = min(_timed(lambda: a @ a) for _ in range(10))
    return 1024**3 / best


def _timed(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(model: WaveNet, samples: int, begun: int, rounds: int) -> None:
    """Print both samplers' cost of a value for so many streams at once."""
    length = model.spec.dim - begun
    x = torch.randint(0, model.levels, (samples, model.spec.dim), dtype=torch.uint8)
    known = (torch.arange(model.spec.dim) < begun).expand(samples, -1)

    def cached(seed: int) -> Tensor:
        return model.complete(x, known, generator=torch.Generator().manual_seed(seed)).long()

    def naive(seed: int) -> Tensor:
        return naive_continuation(model, x, begun, torch.Generator().manual_seed(seed))

    model.double()
    fast, slow = cached(0)[:, begun:], naive(0)[:, begun:]
    print(f"{samples} streams, float64: {int((fast != slow).sum())} of {fast.numel()} values differ")
    model.float()
    quick, long = [], []
    for seed in range(rounds):
        quick.append(_timed(lambda s=seed: cached(s)) / model.spec.dim)
        long.append(_timed(lambda s=seed: naive(s)) / length)
    print(
        f"{len(model.net.dilations)} layers, receptive field {begun}, {samples} streams: cached "
        f"{1e3 * min(quick):.3f} ms a value, naive {1e3 * min(long):.3f} ms, {min(long) / min(quick):.1f}x faster"
    )
    weights = sum(p.numel() for name, p in model.named_parameters() if "weight" in name and "embedding" not in name)
    share = samples * weights / min(quick) / matmul_rate()
    print(f"a value costs {weights:,} multiply-adds; {100 * share:.1f} percent of the rate of a large matrix product")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 10), ("channels", 32), ("skip", 64), ("length", 20), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dilations = tuple(2**i for i in range(args.layers))
    begun = 1 + sum(dilations)
    spec = DataSpec((begun + args.length,), "discrete", levels=256)
    model = WaveNet(spec, dilations=dilations, channels=args.channels, skip_channels=args.skip)
    for samples in args.samples:
        compare(model, samples, begun, args.rounds)


if __name__ == "__main__":
    main()

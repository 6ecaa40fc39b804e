"""MAF's training step beside a hand-written one, zuko, nflows and normflows, and its sampler beside D passes.

    python scripts/benchmark_maf.py [--dims 2 64] [--hidden 64] [--layers 5] [--batch 256] [--rounds 60]

All in one process and on the same data, in turns, in processor time of the one thread, so that a busy machine disturbs
little; a step is the module's forward pass, backward pass and optimiser, with no trainer. Prints medians of each, and
of the ratio of ours to each in the same round. ``matmuls`` is the limit that no implementation passes: only the
products of matrices that forward and backward passes need. Peers that are not installed are named and left out
(``pip install zuko nflows umnn normflows``). The samples of both samplers are compared first.
"""

import argparse
import importlib
import math
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.flow.maf import Maf
from dgmbench.nn.masked import MaskedMlp
from dgmbench.nn.masked_flows import MaskedAffine, bounded

Step = Callable[[], object]


def in_turn(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each in every round; the first three rounds warm up and do not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 3):
        for name, step in steps.items():
            start = time.thread_time()
            step()
            if turn >= 3:
                times[name].append(time.thread_time() - start)
    return times


def training(parameters: list[nn.Parameter], loss: Callable[[], Tensor]) -> Step:
    """A step of Adam, the same for everyone."""
    optimiser = torch.optim.Adam(parameters, lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()

    return step


def ours(model: Maf, x: Tensor) -> Step:
    """The module's loss."""
    generator, batch = torch.Generator(), Batch(x)
    return training(list(model.parameters()), lambda: model.loss("model", batch, generator)[0])


def hand_written(dim: int, hidden: int, layers: int, x: Tensor) -> Step:
    """The same network as a bare loop, without bounds of the scales and without modules between."""
    stack, parameters = [], []
    for layer in range(layers):
        order = "natural" if layer % 2 == 0 else "reversed"
        masks = [table.float() for table in MaskedMlp(dim, (hidden, hidden), 2, order=order).layer_masks(0)]
        linears = [nn.Linear(a, b) for a, b in pairwise([dim, hidden, hidden, 2 * dim])]
        stack.append(list(zip(linears, masks, strict=True)))
        parameters += [p for linear in linears for p in linear.parameters()]

    def loss() -> Tensor:
        z, log_det = x, torch.zeros(len(x))
        for first, second, last in stack:
            h = F.relu(F.linear(z, first[0].weight * first[1], first[0].bias))
            h = F.relu(F.linear(h, second[0].weight * second[1], second[0].bias))
            out = F.linear(h, last[0].weight * last[1], last[0].bias).view(len(x), dim, 2)
            z = (z - out[..., 0]) * torch.exp(-out[..., 1])
            log_det = log_det - out[..., 1].sum(1)
        return -(log_det - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)).mean()

    return training(parameters, loss)


def matmuls(dim: int, hidden: int, layers: int, batch: int) -> Step:
    """The products of matrices alone: one forwards and two backwards for each linear map."""
    shapes = list(pairwise([dim, hidden, hidden, 2 * dim]))
    work = [(torch.randn(batch, a), torch.randn(a, b), torch.randn(batch, b)) for a, b in shapes]
    out = [(torch.empty(batch, b), torch.empty(batch, a), torch.empty(a, b)) for a, b in shapes]

    def step() -> None:
        for _ in range(layers):
            for (x, w, g), (forward, back, weight) in zip(work, out, strict=True):
                torch.mm(x, w, out=forward)
                torch.mm(g, w.T, out=back)
                torch.mm(x.T, g, out=weight)

    return step


def zuko(dim: int, hidden: int, layers: int, x: Tensor) -> Step:
    """zuko's MAF."""
    flow = importlib.import_module("zuko.flows").MAF(dim, 0, transforms=layers, hidden_features=(hidden, hidden))
    return training(list(flow.parameters()), lambda: -flow().log_prob(x).mean())


def nflows(dim: int, hidden: int, layers: int, x: Tensor) -> Step:
    """nflows' masked affine transform with reversed orders; one block after the first layer makes two hidden layers."""
    flows, transforms = importlib.import_module("nflows.flows"), importlib.import_module("nflows.transforms")
    distributions = importlib.import_module("nflows.distributions")
    steps = []
    for _ in range(layers):
        steps.append(
            transforms.MaskedAffineAutoregressiveTransform(dim, hidden, num_blocks=1, use_residual_blocks=False)
        )
        steps.append(transforms.ReversePermutation(dim))
    flow = flows.Flow(transforms.CompositeTransform(steps), distributions.StandardNormal([dim]))
    return training(list(flow.parameters()), lambda: -flow.log_prob(x).mean())


def normflows(dim: int, hidden: int, layers: int, x: Tensor) -> Step:
    """normflows' MaskedAffineAutoregressive, whose density takes D passes (it is an IAF by orientation)."""
    nf = importlib.import_module("normflows")
    steps = []
    for _ in range(layers):
        steps.append(nf.flows.MaskedAffineAutoregressive(dim, hidden, num_blocks=1))
        steps.append(nf.flows.Permute(dim, mode="swap"))
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(dim, trainable=False), steps)
    return training(list(flow.parameters()), lambda: flow.forward_kld(x))


PEERS = {"zuko": zuko, "nflows": nflows, "normflows": normflows}


def steps_of(dim: int, hidden: int, layers: int, batch: int) -> dict[str, Step]:
    """Everyone's step."""
    torch.manual_seed(0)
    x = torch.randn(batch, dim)
    model = Maf(DataSpec((dim,), "real"), layers=layers, hidden_sizes=(hidden, hidden), batch_norm=False)
    steps = {"ours": ours(model, x), "hand-written": hand_written(dim, hidden, layers, x)}
    steps["matmuls"] = matmuls(dim, hidden, layers, batch)
    for name, peer in PEERS.items():
        try:
            steps[name] = peer(dim, hidden, layers, x)
        except ImportError as missing:
            print(f"{name} is not installed and left out ({missing}).")
    return steps


@torch.no_grad()
def d_passes(model: Maf, z: Tensor) -> Tensor:
    """The inverse of every layer by one full pass of its network for each dimension."""
    for step in reversed(list(model.bijection.parts())):
        if not isinstance(step, MaskedAffine):
            z = step.inverse(z)[0]
            continue
        x = torch.zeros_like(z)
        for i in step.net.positions[0].argsort().tolist():
            shift, a = step.net(x)[:, i].unbind(-1)
            x[:, i] = z[:, i] * bounded(a).exp() + shift
        z = x
    return z


def sampling(dim: int, hidden: int, layers: int, n: int) -> None:
    """The degree-sorted sweep beside D passes."""
    torch.manual_seed(0)
    model = Maf(DataSpec((dim,), "real"), layers=layers, hidden_sizes=(hidden,)).eval()
    z = torch.randn(n, dim)
    with torch.no_grad():
        fast = model.bijection.inverse(z)[0]
        quick = []
        for _ in range(7):
            start = time.thread_time()
            model.bijection.inverse(z)
            quick.append(time.thread_time() - start)
        start = time.thread_time()
        model.bijection(fast)
        density = time.thread_time() - start
    start = time.thread_time()
    slow = d_passes(model, z)
    naive, sweep = time.thread_time() - start, statistics.median(quick)
    difference = ((fast - slow).abs() / (1 + slow.abs())).max().item()
    print(
        f"{n} samples, D={dim}, {layers} x {hidden} hidden: sweep {sweep:.3f} s, D passes {naive:.2f} s, "
        f"{naive / sweep:.0f}x faster; largest relative difference {difference:.1e}; one density pass "
        f"{1e3 * density:.1f} ms, the limit of {sweep / density:.0f}x less"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="*", default=[2, 64])
    defaults = {"hidden": 64, "layers": 5, "batch": 256, "rounds": 60}
    defaults |= {"sample_dim": 784, "sample_hidden": 1024, "sample_layers": 1, "samples": 64}
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # the peers' deprecations
    for dim in args.dims:
        steps = steps_of(dim, args.hidden, args.layers, args.batch)
        times = in_turn(steps, args.rounds)
        print(f"training step, D={dim}, {args.layers} layers of 2 x {args.hidden}, batch {args.batch}:")
        for name, seconds in times.items():
            ratio = statistics.median(a / b for a, b in zip(times["ours"], seconds, strict=True))
            print(f"  {name:13} {1e3 * statistics.median(seconds):8.2f} ms   ours is {ratio:.2f}x")
    if args.samples:
        sampling(args.sample_dim, args.sample_hidden, args.sample_layers, args.samples)


if __name__ == "__main__":
    main()

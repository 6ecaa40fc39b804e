"""NADE's recurrence beside the autograd loop and one product per prefix, FVBN beside D small layers, in one process.

    python scripts/benchmark_nade.py [--dim 784] [--hidden 500] [--batch 100] [--ones 0.5] [--rounds 5]

Prints median times of forward and backward, their ratios, and what autograd keeps; outputs and gradients are compared
first. ``--ones`` is the share of inputs that are one: binarised MNIST has 0.13.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.models.autoregressive.fvbn import Fvbn
from dgmbench.nn.nade import NadeWeights, nade_parameters

Step = Callable[[], tuple[float, Sequence[Tensor]]]


def loop(x: Tensor, w: NadeWeights) -> Tensor:
    """The recurrence step by step, with autograd's backward pass."""
    a, out = w.bias.expand(len(x), -1), []
    for t in range(x.shape[1]):
        out.append(a.sigmoid() @ w.out_weight[t].T + w.out_bias[t])
        a = a + x[:, t, None] * w.weight[t]
    return torch.stack(out)


def prefixes(x: Tensor, w: NadeWeights) -> Tensor:
    """One product with each prefix of the inputs: O(HD^2)."""
    out = []
    for t in range(x.shape[1]):
        h = torch.sigmoid(w.bias + x[:, :t] @ w.weight[:t])
        out.append(h @ w.out_weight[t].T + w.out_bias[t])
    return torch.stack(out)


def step(f: Callable[[], Tensor], target: Tensor, parameters: Sequence[Tensor]) -> Step:
    """Loss and gradients of one way to compute the logits (d, b, 1)."""

    def run() -> tuple[float, Sequence[Tensor]]:
        loss = F.binary_cross_entropy_with_logits(f()[..., 0], target, reduction="sum") / target.shape[1]
        return loss.item(), torch.autograd.grad(loss, parameters)

    return run


def kept(f: Callable[[], Tensor], own: Sequence[Tensor]) -> float:
    """MiB that autograd keeps for the backward pass besides the parameters and inputs."""
    storages: dict[int, int] = {}
    known = {t.untyped_storage().data_ptr() for t in own}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in known:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = f()
    del out
    return sum(storages.values()) / 2**20


def compare(steps: dict[str, Step], rounds: int) -> None:
    """Check that all agree with the first, then time them in turns, so that a busy machine slows all alike."""
    first = next(iter(steps))
    loss, gradients = steps[first]()
    for name, run in steps.items():
        other, others = run()
        assert abs(other - loss) <= 1e-4 * abs(loss), name
        for a, b in zip(gradients, others, strict=True):
            error = (a - b).norm() / a.norm()
            assert error < 1e-3, f"{name}: gradients differ by {error:.1e}"
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, run in steps.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    ours = statistics.median(times[first])
    for name, found in times.items():
        median = statistics.median(found)
        print(f"  {name:28} {1e3 * median:9.1f} ms   {median / ours:6.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("dim", 784), ("hidden", 500), ("batch", 100), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ones", type=float, default=0.5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    d, h, b = args.dim, args.hidden, args.batch
    shapes = [(d, h), (h,), (d, 1, h), (d, 1)]
    w = NadeWeights(*[(0.05 * torch.randn(s)).requires_grad_() for s in shapes], None)
    x = (torch.rand(b, d) < args.ones).float()
    target = x.T.contiguous()

    def ours() -> Tensor:
        return nade_parameters(x, w, "sigmoid")

    print(f"NADE, D={d} H={h} B={b}, {args.ones:.0%} ones, forward and backward:")
    ways = {"ours": ours, "autograd loop": lambda: loop(x, w), "a product for each prefix": lambda: prefixes(x, w)}
    compare({name: step(f, target, w[:4]) for name, f in ways.items()}, args.rounds)
    memory = [kept(f, [*w[:4], x]) for f in (ours, lambda: loop(x, w))]
    print(f"  kept for the backward pass: ours {memory[0]:.1f} MiB, the loop {memory[1]:.1f} MiB; B H is "
          f"{4 * b * h / 2**20:.1f} MiB, D B {4 * b * d / 2**20:.1f} MiB")  # fmt: skip

    model = Fvbn(DataSpec((d,), "binary"))
    linear = model.net.linear(0)
    nn.init.normal_(linear.weight, std=0.05)
    raw = x.to(torch.uint8)

    def small() -> Tensor:
        return torch.stack([x[:, :t] @ linear.weight[t, :t] + linear.bias[t] for t in range(d)])[..., None]

    print(f"FVBN, D={d} B={b}, forward and backward:")
    one = {"ours": lambda: model.conditional_logits(raw).transpose(0, 1), "D small layers": small}
    parameters = [linear.weight, linear.bias]
    compare({name: step(f, target, parameters) for name, f in one.items()}, args.rounds)


if __name__ == "__main__":
    main()

"""Glow's memory and time with and without recomputation, and sampling beside training, in one process.

    python scripts/benchmark_glow.py [--steps 16] [--side 32] [--channels 3] [--batch 8] [--width 128]

The defaults are 16 steps on 12 x 16 x 16 values (one squeeze of 3 x 32 x 32). Prints what autograd saves for the
backward pass (parameters not counted), median times of loss and backward, their ratios, and how far gradients differ.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.flow.glow import Glow


def saved_bytes(model: Glow, batch: Batch) -> int:
    """Bytes of the distinct tensors that autograd keeps between loss and backward, without the parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss, _ = model.loss("model", batch, torch.Generator().manual_seed(0))
    del loss
    return sum(kept.values())


def gradients(model: Glow, batch: Batch) -> list[Tensor]:
    """Of the loss, in the order of the parameters."""
    loss, _ = model.loss("model", batch, torch.Generator().manual_seed(0))
    return list(torch.autograd.grad(loss, list(model.parameters())))


def alternate(functions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median CPU seconds of each, taking turns so that a busy machine slows all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(rounds + 1):
        for function, record in zip(functions, times, strict=True):
            start = time.process_time()
            function()
            if turn:
                record.append(time.process_time() - start)
    return [statistics.median(record) for record in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 16), ("side", 32), ("channels", 3), ("batch", 8), ("width", 128), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    spec = DataSpec((args.channels, args.side, args.side), "discrete", levels=256)
    models = []
    for recompute in (False, True):
        torch.manual_seed(0)
        models.append(Glow(spec, levels=1, steps=args.steps, width=args.width, recompute=recompute))
    batch = Batch(torch.randint(256, (args.batch, *spec.shape), dtype=torch.uint8))
    for model in models:
        model.initialise(batch, torch.Generator().manual_seed(0))
    pairs = zip(*(gradients(model, batch) for model in models), strict=True)
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    plain, saving = (saved_bytes(model, batch) for model in models)
    times = alternate([lambda model=model: gradients(model, batch) for model in models], args.rounds)  # type: ignore[misc]
    print(f"saved tensors: {plain / 2**20:.1f} MiB, recomputing {saving / 2**20:.2f} MiB, 1/{plain / saving:.0f}")
    print(f"loss and backward: {times[0]:.3f} s, recomputing {times[1]:.3f} s, {times[1] / times[0]:.2f}x (CPU time)")
    print(f"largest difference of gradients: {difference:.1e}")
    sampling = alternate([lambda: models[0].sample(args.batch)], args.rounds)[0]
    print(f"{args.batch} samples: {sampling:.3f} s, {times[0] / sampling:.1f} times as fast as loss and backward")


if __name__ == "__main__":
    main()

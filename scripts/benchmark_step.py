"""What one training step costs beyond its mathematics: a bare loop, dgmbench's trainer, Lightning's automatic mode.

    python scripts/benchmark_step.py [--steps 2000] [--repeats 5]

The three run the same model on the same batches in one process, in turn; figures are the median over the repeats.
"""

import argparse
import statistics
import time

import numpy as np
import pytorch_lightning as pl
import torch

from dgmbench.data import Batch, BatchStream, DataSet, DataSpec, Split
from dgmbench.models.vae.vae import Vae
from dgmbench.runs.progress import quiet_lightning
from dgmbench.training.module import Training
from dgmbench.training.plan import make_plan
from dgmbench.training.schedule import Schedule

SPEC = DataSpec((64,), "binary")
BATCH = 32


def data() -> DataSet:
    x = np.random.RandomState(0).randint(0, 2, (2000, 64)).astype(np.uint8)
    split = Split(x, None)
    return DataSet("noise", SPEC, {"train": split, "valid": split, "test": split}, "0" * 64)


def model() -> Vae:
    torch.manual_seed(0)
    return Vae(SPEC, hidden_sizes=(32,), latent=4)


def trainer() -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0)  # fmt: skip


def adam(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def bare(steps: int) -> float:
    net, stream, generator = model(), BatchStream(data(), batch_size=BATCH, seed=0), torch.Generator()
    optimizer = adam(list(net.parameters()))
    begin = time.perf_counter()
    for b in range(steps):
        loss, _ = net.loss("model", stream.batch(b), generator.manual_seed(b))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - begin


def ours(steps: int) -> float:
    net, stream = model(), BatchStream(data(), batch_size=BATCH, seed=0)
    settings = {"budget": f"{steps}ba", "batch_size": BATCH, "validate": "1000000ba", "samples": "1000000ba",
                "checkpoint": "3600s", "clip": None, "accumulate": 1, "ema": 0.0}  # fmt: skip
    plan = make_plan(settings, images_per_epoch=2000, stages=net.stages())
    schedule = Schedule(
        {"name": "constant", "warmup": "0ba", "final": 0.0}, images_per_epoch=2000, batch_size=BATCH, accumulate=1
    )
    module = Training(net, plan=plan, stream=stream, initial=lambda: stream.batch(0), seed=0,
                      optimizers=lambda player, parameters: adam(parameters), schedule=schedule)  # fmt: skip
    with quiet_lightning():
        fitter = trainer()
        begin = time.perf_counter()
        fitter.fit(module)
        return time.perf_counter() - begin


class Automatic(pl.LightningModule):
    """Lightning's automatic optimisation of the same model, with its own logging of the loss."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.net, self.steps = model(), steps
        self.stream, self.generator = BatchStream(data(), batch_size=BATCH, seed=0), torch.Generator()

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss, _ = self.net.loss("model", batch, self.generator.manual_seed(batch_idx))
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adam(list(self.net.parameters()))

    def train_dataloader(self) -> "Batches":
        return Batches(self.stream, self.steps)


class Batches:
    def __init__(self, stream: BatchStream, steps: int) -> None:
        self.stream, self.steps = stream, steps

    def __iter__(self):
        return (self.stream.batch(b) for b in range(self.steps))


def automatic(steps: int) -> float:
    with quiet_lightning():
        module, fitter = Automatic(steps), trainer()
        begin = time.perf_counter()
        fitter.fit(module)
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ways = {"bare loop": bare, "dgmbench": ours, "Lightning automatic": automatic}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(50)
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            times[name].append(way(arguments.steps) / arguments.steps * 1e6)
    floor = statistics.median(times["bare loop"])
    added = statistics.median(times["Lightning automatic"]) - floor
    for name, values in times.items():
        cost = statistics.median(values)
        share = (cost - floor) / added
        print(f"{name:20s} {cost:8.0f} us a step   {cost - floor:+8.0f} us   {share:6.2f} of what automatic adds")


if __name__ == "__main__":
    main()

"""Do the short annealing runs of validation put the checkpoints of an undirected model in the right order?

    python scripts/checkpoint_order.py [--data digits_binary] [--epochs 30] [--every 2] [model.hidden=200 ...]

Trains `model=rbm` by hand at the defaults of its configuration (overrides may follow), measures log Z at every so many
epochs with several numbers of temperatures, and prints for each number: the rank correlation of its log-likelihoods
with those of the longest runs, the largest difference, and the nats that are lost on the longest runs' scale if the
best checkpoint is chosen by it. The middle of the bracket is what validation uses.
"""

import argparse

import torch
from scipy.stats import spearmanr
from torch import Tensor

from dgmbench.config import compose, resolve
from dgmbench.data.spec import Batch
from dgmbench.evaluation.evaluator import VALIDATION
from dgmbench.evaluation.likelihood.ais import bracket
from dgmbench.runs.build import build_model, load_data

SHORT, LONG = (100, 300), 10_000


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits_binary")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = resolve(compose("train", ["model=rbm", f"data={args.data}", *args.overrides]))
    data = load_data(settings)
    model = build_model(settings, data.spec)
    budgets = (*SHORT, VALIDATION["temperatures"], LONG)
    found: dict[int, list[float]] = {budget: [] for budget in budgets}
    train, valid = (torch.from_numpy(data.splits[name].x[:]) for name in ("train", "valid"))
    g = torch.Generator().manual_seed(0)
    model.initialise(Batch(train[:1000]), g)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=settings["optimizer"]["lr"], momentum=settings["optimizer"]["momentum"]
    )
    size = settings["trainer"]["batch_size"]
    steps = args.epochs * (len(train) // size)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for epoch in range(1, args.epochs + 1):
        for index in torch.randperm(len(train), generator=g).split(size)[: steps // args.epochs]:
            batch = Batch(train[index])
            optimiser.zero_grad()
            model.loss("model", batch, g)[0].backward()
            optimiser.step()
            model.after_step("model", batch, g)
            rates.step()
        if epoch % args.every == 0:
            for budget in budgets:
                found[budget].append(middle(model, valid, budget))
            print(epoch, *(f"{found[budget][-1]:9.2f}" for budget in budgets), flush=True)
    right = found[LONG]
    print("\ntemperatures   rank correlation   largest difference   nats lost by choosing")
    for budget in budgets[:-1]:
        best = max(range(len(right)), key=found[budget].__getitem__)
        apart = max(abs(a - b) for a, b in zip(found[budget], right, strict=True))
        order = spearmanr(found[budget], right).statistic
        print(f"{budget:12d} {order:18.3f} {apart:20.2f} {max(right) - right[best]:23.2f}")


@torch.no_grad()
def middle(model: torch.nn.Module, valid: Tensor, temperatures: int) -> float:
    """The validation set's mean log-likelihood with log Z in the middle of the bracket."""
    settings = VALIDATION | {"temperatures": temperatures}
    g = torch.Generator().manual_seed(1)
    sides = bracket(model.annealing_path(), valid[: settings["chains"] // 2], **settings, generator=g)
    values = torch.cat([model.log_prob_unnormalised(part).double() for part in valid.split(1000)])
    return float(values.mean()) - (sides.forward.log_z + sides.reverse.log_z) / 2


if __name__ == "__main__":
    main()

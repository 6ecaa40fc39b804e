"""Write a bench folder with any number of simulated cells, to measure and to look at ``dgm report``.

    python scripts/simulate_ledger.py DIR [--cells 10000]
    dgm report DIR

Numbers and pictures are noise. Every state of a cell occurs, some metrics have two protocols, and every tenth
model has a published value. The first seed of each model and data set has learning curves and a picture.
"""

import argparse
import json
import random
import zlib
from pathlib import Path

import yaml
from PIL import Image

SEEDS = 5
DATA = ("digits_binary", "mnist", "omniglot", "caltech_silhouettes", "cifar10", "celeba", "svhn", "toy2d")
LIKELIHOOD = {
    "boltzmann": ("log_likelihood_ais", "estimate"), "vae": ("elbo", "lower bound"), "gan": None, "gsn": None,
    "moment_matching": None, "flow": ("log_likelihood", "exact"), "autoregressive": ("log_likelihood", "exact"),
}  # fmt: skip
VERSIONS = {"dgmbench": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"}


def protocols(data: str) -> dict[str, dict]:
    common = {"split": "test", "data_hash": data * 3, "checkpoint": "best", "averaged_weights": False, "seed": 0}
    found = {}
    for draws in (1, 100):
        found[f"{zlib.crc32(f'{data} {draws}'.encode()):08x}"] = {**common, "draws": draws}
    return found


def metric(value: float, kind: str, unit: str, direction: str, protocol: str) -> dict:
    return {"value": value, "kind": kind, "unit": unit, "direction": direction, "se": 0.2, "n": 1000,
            "protocol_id": protocol}  # fmt: skip


def result(cell: dict, known: dict[str, dict], noise: random.Random) -> dict:
    first, second = known
    quality = noise.gauss(0, 1)
    metrics = {
        "energy_distance": metric(abs(quality) + 0.1, "estimate", "scaled pixels", "lower", first),
        "reconstruction_mse": metric(abs(quality) / 5 + 0.01, "estimate", "scaled pixels^2", "lower", first),
    }
    if found := LIKELIHOOD[cell["family"]]:
        protocol = second if cell["model"].endswith("5") else first
        metrics[found[0]] = metric(quality * 5 - 90, found[1], "nats", "higher", protocol)
        bits = (90 - quality * 5) / 784 / 0.6931
        metrics[f"{found[0]}_bits_per_dim"] = metric(bits, found[1], "bits/dim", "lower", protocol)
    cost = {"parameters": noise.randrange(10**4, 10**7), "images": 10**6, "batches": 10**4,
            "train_seconds": round(10 ** noise.uniform(1, 4), 1), "train_images_per_second": 2000.0,
            "sample_seconds_per_image": 10 ** noise.uniform(-6, -2), "peak_memory_mib": 480.5,
            "device": "cpu"}  # fmt: skip
    return {"model": cell["model"], "family": cell["family"], "data": cell["data"], "seed": cell["seed"],
            "status": "done", "run": cell["run"], "config_hash": cell["run"][-8:], "metrics": metrics,
            "protocols": known, "cost": cost, "versions": VERSIONS, "finished": 1_790_000_000}  # fmt: skip


def config(cell: dict) -> dict:
    target = f"simulated.{cell['family']}.{cell['model']}.Model"
    card = {"family": cell["family"], "survey": "3", "summary": "simulated", "kinds": ["binary"]}
    return {
        "model": {"_target_": target, "card": card, **{f"argument_{i}": i for i in range(30)}},
        "data": {"_target_": f"simulated.{cell['data']}.Data", "name": cell["data"]},
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 1e-3, "betas": [0.9, 0.999]},
        "trainer": {"budget": "20ep", "batch_size": 100},
        "seed": cell["seed"],
        "paths": {"outputs": "outputs/bench/simulated", "data": "data"},
        "names": {"model": cell["model"], "data": cell["data"], "optimizer": "adam"},
    }


def write_curves(path: Path, noise: random.Random) -> None:
    rows = []
    for i in range(1, 121):
        common = {"images": i * 1000, "batches": i * 10, "epoch": i / 6, "stage": "train", "seconds": i * 0.5}
        rows.append({"kind": "train", **common, "model/loss": 90 + 100 / i + noise.gauss(0, 2)})
        if i % 10 == 0:
            rows.append({"kind": "valid", **common, "elbo": -90 - 100 / i + noise.gauss(0, 0.5)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_picture(path: Path, noise: random.Random) -> None:
    path.parent.mkdir()
    small = Image.frombytes("RGB", (64, 64), noise.randbytes(64 * 64 * 3))
    small.resize((512, 512), Image.Resampling.BICUBIC).save(path, compress_level=1)


def state(number: int) -> tuple[str, str | None]:
    reasons = {
        3: ("failed", "RunFailed: the loss of player 'critic' is nan at batch 1204; lower optimizer.lr."),
        17: ("oom", "5.1 GiB needed, 4 GiB allowed"),
        41: ("timeout", "over 3600 s"),
        59: ("planned", None),
    }
    return reasons.get(number % 97, ("done", None))


def write_cell(folder: Path, number: int, models: int, noise: random.Random) -> dict:
    group, seed = divmod(number, SEEDS)
    data, model = DATA[group // models % len(DATA)], group % models
    family = list(LIKELIHOOD)[model % len(LIKELIHOOD)]
    name = f"{family}_{model:03d}" + (f"_{group // models // len(DATA)}" if group >= models * len(DATA) else "")
    status, reason = state(number)
    if model % 50 == 49:
        status, reason = "not built", None
    elif model % 50 == 48 and data == "toy2d":
        status, reason = "skipped", f"{name} takes images, {data} has none"
    paper = {"value": -86.34, "unit": "nats", "metric": "elbo", "table": "2",
             "protocol": {"split": "test", "draws": 5000}, "tolerance": 1.0,
             "source": "Simulated et al. 2014"}  # fmt: skip
    cell = {"id": f"{name}-{data}-s{seed}", "model": name, "data": data, "seed": seed, "family": family,
            "overrides": [f"model={name}", f"data={data}", f"seed={seed}"],
            "command": f"dgm train model={name} data={data} seed={seed} paths.outputs=outputs/bench/simulated",
            "experiment": None, "paper": paper if model % 10 == 1 else None, "run": None, "status": status,
            "reason": reason, "seconds": None}  # fmt: skip
    if status in ("done", "failed", "oom", "timeout"):
        cell["run"] = f"{name}-{data}-s{seed}-{number:08x}"
        run = folder / cell["run"]
        run.mkdir()
        (run / "config.yaml").write_text(yaml.dump(config(cell), sort_keys=False, Dumper=yaml.CSafeDumper))
        if status == "done":
            (run / "result.json").write_text(json.dumps(result(cell, protocols(data), noise), indent=2))
        elif status == "failed":
            (run / "traceback.txt").write_text("Traceback (most recent call last):\n  ...\n" + str(reason) + "\n")
        if seed == 0 and status == "done":
            write_curves(run / "metrics.jsonl", noise)
            write_picture(run / "samples" / "best-n64-s0.png", noise)
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, default=10_000)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    noise = random.Random(0)
    models = max(7, min(136, arguments.cells // SEEDS // len(DATA)))
    cells = [write_cell(arguments.folder, number, models, noise) for number in range(arguments.cells)]
    suite = {"suite": "simulated", "title": "Simulated cells", "survey": None, "cells": cells}
    (arguments.folder / "cells.json").write_text(json.dumps(suite))
    print(f"{len(cells)} cells in {arguments.folder}")


if __name__ == "__main__":
    main()

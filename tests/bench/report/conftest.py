"""Run folders as ``dgm train`` leaves them, without training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

PROTOCOLS = {
    "aaaa0001": {"split": "test", "data_hash": "d" * 64, "checkpoint": "best", "k": 50},
    "aaaa0002": {"split": "test", "data_hash": "d" * 64, "checkpoint": "best", "k": 5000},
}


def metric(value: float, protocol: str = "aaaa0001", **other: Any) -> dict[str, Any]:
    found = {"value": value, "kind": "lower bound", "unit": "nats", "direction": "higher", "se": 0.25, "n": 359}
    return {**found, "protocol_id": protocol, **other}


class Bench:
    """A bench folder under construction."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cells: list[dict[str, Any]] = []
        self.survey = ""
        folder.mkdir()

    def run(
        self,
        model: str = "vae",
        data: str = "digits_binary",
        seed: int = 0,
        metrics: dict[str, Any] | None = None,
        *,
        family: str = "vae",
        tag: str = "",
        **model_settings: Any,
    ) -> Path:
        path = self.folder / f"{model}-{data}-s{seed}-{tag or '0123abcd'}"
        path.mkdir()
        config = {
            "model": {"_target_": f"own.{model}.Model", "card": {"family": family}, "latent": 50, **model_settings},
            "data": {"_target_": "own.Data", "name": data},
            "seed": seed,
            "paths": {"outputs": f"outputs/{seed}", "data": "data"},
            "names": {"model": model, "data": data},
        }
        (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        if metrics is not None:
            result = {
                "model": model, "family": family, "data": data, "seed": seed, "status": "done", "run": path.name,
                "config_hash": "0123abcd", "metrics": metrics, "protocols": PROTOCOLS, "finished": 1_790_000_000,
                "cost": {"parameters": 1000, "images": 75500, "train_seconds": 2.5, "device": "cpu"},
                "versions": {"dgmbench": "0.1.0", "torch": "2.13.0"},
            }  # fmt: skip
            (path / "result.json").write_text(json.dumps(result))
        return path

    def cell(self, model: str, data: str = "digits_binary", seed: int = 0, **other: Any) -> dict[str, Any]:
        cell = {"id": f"{model}-{data}-s{seed}", "model": model, "data": data, "seed": seed, "family": "vae",
                "overrides": [f"model={model}", f"seed={seed}"], "command": f"dgm train model={model} seed={seed}",
                "experiment": None, "paper": None, "run": None, "status": "planned", "reason": None,
                "seconds": None}  # fmt: skip
        self.cells.append({**cell, **other})
        suite = {"suite": "own", "title": "A suite of one's own", "survey": self.survey, "cells": self.cells}
        (self.folder / "cells.json").write_text(json.dumps(suite))
        return self.cells[-1]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "own")


@pytest.fixture
def number() -> Callable[..., dict[str, Any]]:
    return metric


@pytest.fixture
def rich_bench(bench: Bench) -> Bench:
    """Every state of a cell, two protocols, a published value, curves, a picture, and texts that mean mischief."""
    for seed, value in enumerate((-90.0, -92.0, -91.0)):
        run = bench.run("vae", seed=seed, metrics={"elbo": metric(value), "energy_distance": metric(0.01)})
        paper = {"value": -91.5, "unit": "nats", "metric": "elbo", "table": "2", "tolerance": 1.0,
                 "source": "A & B 2014", "protocol": {"split": "test", "k": 50}}  # fmt: skip
        bench.cell("vae", seed=seed, run=run.name, status="done", paper=paper)
    rows = [
        {"kind": "train", "images": 100 * i, "seconds": 0.1 * i, "batches": i, "epoch": i, "stage": "train",
         "model/elbo": -100 + i / 100}
        for i in range(1, 1001)
    ]  # fmt: skip
    rows[500:500] = [{"kind": "valid", "images": 50_000, "seconds": 50.0, "batches": 500, "epoch": 5, "elbo": -95.0}]
    first = bench.folder / "vae-digits_binary-s0-0123abcd"
    (first / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "tr')
    (first / "samples").mkdir()
    Image.new("L", (64, 64), 128).save(first / "samples" / "best-n64-s0.png")
    deep = bench.run("iwae", metrics={"elbo": metric(-89.0, "aaaa0002")})
    bench.cell("iwae", run=deep.name, status="done")
    failed = bench.run("lvae")
    trick = "</script><img src=x onerror=\"document.title='caught'\"> & 100% of $x_1$ | \\bad"
    (failed / "traceback.txt").write_text(f"Traceback:\n  File x\nRunFailed: {trick}\n")
    (failed / "status.json").write_text(json.dumps({"status": "failed", "reason": f"RunFailed: {trick}"}))
    bench.cell("lvae", run=failed.name, status="failed", reason=None)
    bench.cell("gan", data="toy2d", family="gan", status="skipped", reason="gan takes images, toy2d has none")
    bench.cell("vqvae2", status="not built")
    bench.cell("bvae")
    bench.cell("big_vae", status="oom", reason="9 GiB needed, 4 GiB allowed")
    return bench

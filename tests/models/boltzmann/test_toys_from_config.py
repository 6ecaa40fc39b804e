"""Machines with Gaussian data and with counts of words, from their configuration through train, evaluate and verify."""

import json
from pathlib import Path

import numpy as np
import pytest

from ... import processes

OWN = Path(__file__).parent / "machines"
KEEP = ("trainer.budget=30ba", "trainer.validate=15ba", "trainer.progress=false", "protocol=quick", "hardware=cpu")


def dgm(*words: str) -> str:
    done = processes.dgm(*words, environment={"DGM_CONFIG_DIR": str(OWN)})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("model", ["gaussian_toy", "count_toy"])
def test_a_machine_of_any_units_is_trained_measured_and_proved(model: str, tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    if model == "gaussian_toy":
        x = (g.normal(size=(300, 2)) * 0.4 + g.integers(2, size=(300, 1)) * 3).astype(np.float32)
    else:
        topics = np.array([[0.7, 0.2, 0.05, 0.05], [0.05, 0.05, 0.2, 0.7]])
        x = np.stack([g.multinomial(g.integers(2, 8), topics[k]) for k in g.integers(2, size=300)]).astype(np.int64)
    np.savez(tmp_path / "data.npz", x_train=x)
    kind = "real" if model == "gaussian_toy" else "counts"
    data = ("data=npz", f"data.path={tmp_path / 'data.npz'}", f"data.kind={kind}", f"paths.outputs={tmp_path}")
    folder = Path(dgm("train", f"model={model}", *data, *KEEP).splitlines()[-1])
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    exact, ais, reverse = (metrics[f"log_likelihood{side}"] for side in ("", "_ais", "_reverse_ais"))
    assert exact["kind"] == "exact"
    for side in (ais, reverse):
        assert abs(side["value"] - exact["value"]) < 5 * side["se_draws"] + 0.05
    table = dgm("verify", f"model={model}", *data)
    assert "log Z inside the AIS bracket" in table
    assert "FAIL" not in table.upper().replace("FAILED: 0", "").replace("0 FAILED", "")

"""``dgm diff``: everything that differs, nothing that does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgmbench.bench.report.difference import differences
from dgmbench.command.main import main


def test_settings_protocols_and_numbers(bench: Any, number: Callable) -> None:
    first = bench.run(seed=0, metrics={"elbo": number(-90.0), "mse": number(0.5), "fd": number(1.0)})
    second = bench.run(
        seed=1, latent=8, metrics={"elbo": number(-91.5), "mse": number(0.5), "fd": number(3.0, "aaaa0002")}
    )
    result = json.loads((second / "result.json").read_text())
    result["versions"]["torch"] = "2.14.0"
    (second / "result.json").write_text(json.dumps(result))
    assert differences(first, first) == []
    assert differences(first, second) == [
        ("config", "model.latent", "50", "8", ""),
        ("config", "seed", "0", "1", ""),
        ("version", "torch", "2.13.0", "2.14.0", ""),
        ("protocol of fd", "k", "50", "5000", ""),
        ("metric", "elbo", "-90.00 nats", "-91.50 nats", "-1.50"),
        ("metric", "fd", "1.00 nats", "3.00 nats", "not comparable"),
    ]


def test_a_protocol_that_several_numbers_share_is_shown_once(bench: Any, number: Callable) -> None:
    names = ("elbo", "fd", "kid", "iw_bound_k50", "mse")
    first = bench.run(seed=0, metrics={name: number(1.0) for name in names})
    second = bench.run(
        seed=1, metrics={name: number(1.0, "aaaa0001" if name == "mse" else "aaaa0002") for name in names}
    )
    found = [row for row in differences(first, second) if row[0].startswith("protocol")]
    assert found == [("protocol of elbo, fd, kid and 1 more", "k", "50", "5000", "")]


def test_numbers_are_compared_under_a_protocol_that_both_runs_know(bench: Any, number: Callable) -> None:
    first = bench.run(seed=0, metrics={"elbo": number(-90.0)})
    second = bench.run(seed=1, metrics={"elbo": number(-50.0, "aaaa0002"), "elbo#aaaa0001": number(-91.5)})
    assert differences(first, second)[1:] == [("metric", "elbo", "-90.00 nats", "-91.50 nats", "-1.50")]


def test_equal_values_of_another_meaning_and_notes_are_differences(bench: Any, number: Callable) -> None:
    first = bench.run(seed=0, metrics={"elbo": number(-90.0), "fd": number(1.0), "log_z_gap": number(0.1)})
    metrics = {"elbo": number(-90.0, kind="estimate"), "fd": number(1.0, "aaaa0002")}
    second = bench.run(seed=1, metrics=metrics | {"log_z_gap": number(0.1, note="wide bracket")})
    assert [row for row in differences(first, second) if row[0] in ("metric", "note")] == [
        ("metric", "elbo", "-90.00 nats", "-90.00 nats", "not comparable: lower bound, estimate"),
        ("metric", "fd", "1.00 nats", "1.00 nats", "not comparable"),
        ("note", "log_z_gap", "-", "wide bracket", ""),
    ]


def test_costs(bench: Any, number: Callable) -> None:
    first, second = (bench.run(seed=seed, metrics={"elbo": number(1.0)}) for seed in (0, 1))
    result = json.loads((second / "result.json").read_text())
    result["cost"]["parameters"] = 2000
    (second / "result.json").write_text(json.dumps(result))
    assert ("cost", "parameters", "1000", "2000", "") in differences(first, second)


def test_a_run_without_numbers(bench: Any, number: Callable) -> None:
    found = differences(bench.run(seed=0, metrics={"elbo": number(-90.0)}), bench.run(seed=1))
    assert ("metric", "elbo", "-90.00 nats", "-", "") in found


def test_values_that_are_not_finite(bench: Any, number: Callable) -> None:
    broken = {"elbo": number(-90.0) | {"value": None}, "fd": number(1.0) | {"value": None}}
    first = bench.run(seed=0, metrics=broken)
    second = bench.run(seed=1, metrics={**broken, "elbo": number(-90.0)})
    assert [row for row in differences(first, second) if row[0] == "metric"] == [
        ("metric", "elbo", "not finite nats", "-90.00 nats", "not finite")
    ]


def test_the_verb(bench: Any, number: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = bench.run(seed=0, metrics={"elbo": number(-90.0)})
    second = bench.run(seed=1, metrics={"elbo": number(-91.0)})
    assert main(["diff", str(first), str(second)]) == 0
    shown = capsys.readouterr().out
    assert "-91.00 nats" in shown
    assert main(["diff", str(first), str(first)]) == 0
    assert "do not differ" in capsys.readouterr().out
    assert main(["diff", str(first)]) == 2
    assert main(["diff", str(first), str(tmp_path)]) == 2
    assert "not the folder of a run" in capsys.readouterr().err
    (second / "result.json").write_text("{")
    assert main(["diff", str(first), str(second)]) == 2
    assert "result.json is damaged" in capsys.readouterr().err

"""What a person reads before, after and of a run: the first line, the header, the headline table, ``dgm show``."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sklearn.datasets import load_digits

from dgmbench.command import main as cli
from dgmbench.command.headline import MOST, chosen, print_headline
from dgmbench.data import DataSpec
from dgmbench.errors import UserError
from dgmbench.runs.build import build_model
from dgmbench.runs.folder import RunFolder


def number(value: float | None, unit: str = "1", kind: str = "estimate", **more: Any) -> dict[str, Any]:
    about = {"se": 0.12, "protocol_id": "1a2b3c4d", "direction": "higher", "note": None}
    return {"value": value, "unit": unit, "kind": kind} | about | more


SAMPLES = ("coverage", "density", "fd", "fd_bias", "kid", "precision", "recall")
LATENT = {
    **{f"{name}_classifier": number(0.5) for name in SAMPLES},
    "elbo": number(-28.4195, "nats", "lower bound"),
    "elbo_bits_per_dim": number(0.64, "bits/dim", "upper bound"),
    "energy_distance": number(0.48, "scaled pixels"),
    "iw_bound_k5": number(-28.1, "nats", "lower bound"),
    "iw_bound_k500": number(-27.4, "nats", "lower bound"),
    "iw_bound_k500_bits_per_dim": number(0.617, "bits/dim", "upper bound"),
    "iw_bound_k500_ess": number(40.0),
    "linear_probe_error": number(0.09, "share"),
    "elbo#5e6f7a8b": number(-30.0, "nats", "lower bound"),
}


def test_the_strongest_statements_come_first_and_no_more_than_eight() -> None:
    assert chosen(LATENT) == [
        "iw_bound_k500", "elbo", "iw_bound_k500_bits_per_dim", "fd_classifier", "energy_distance",
        "precision_classifier", "recall_classifier", "linear_probe_error",
    ]  # fmt: skip
    assert len(chosen(LATENT)) == MOST


def test_both_sides_of_annealing_and_a_model_s_own_objective_are_there() -> None:
    names = ["log_likelihood_ais", "log_likelihood_reverse_ais", "log_z_ais", "log_likelihood_ais_bits_per_dim"]
    assert chosen({name: number(1.0) for name in [*names, "log_z_ais_ess"]}) == [*names[:2], names[3]]
    assert chosen({name: number(1.0) for name in ("cycle", "elbo", "zebra")}, "cycle") == ["cycle", "elbo", "zebra"]


def test_where_the_test_split_was_not_measured_another_is_shown() -> None:
    assert chosen({"elbo@valid": number(1.0), "elbo@final@valid": number(1.0)}) == ["elbo@valid"]


@pytest.mark.parametrize("apart", [False, True])
def test_the_table_fits_eighty_columns_and_shows_final_weights_only_where_they_differ(
    apart: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    best = LATENT | {"fd_classifier": number(None, note="forty examples for a hundred features: biased, " * 3)}
    final = {f"{name}@final": each for name, each in best.items() if "#" not in name}
    if apart:
        final["elbo@final"] = number(-29.5, "nats", "lower bound")
    noted = {**best, **final}
    print_headline({"metrics": noted, "objective": {"name": "elbo"}}, "outputs/run")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert ("final" in out) == apart
    assert ("-29.50" in out) == apart
    assert "-28.42 +- 0.12" in out
    assert "lower bound" in out
    assert "fd_classifier [1]" in out
    assert "not finite" in out
    shown = 16 if apart else 8
    assert f"{len(noted) - shown} more numbers: dgm show run=outputs/run" in out


LATE = """
import sys

class Late:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "numpy", "pytorch_lightning"):
            raise SystemExit(f"{name} is imported")

sys.meta_path.insert(0, Late())
from dgmbench.command.main import main
main(sys.argv[1:])
"""


def test_a_line_says_what_is_loaded_before_anything_slow_is() -> None:
    words = ["train", "seed=0", "model=vae", "data=digits"]
    done = subprocess.run([sys.executable, "-c", LATE, *words], check=False, capture_output=True, text=True)
    (first,), (then,) = done.stdout.splitlines(), done.stderr.splitlines()
    assert first == "vae on digits: loading PyTorch, the data and the model ..."
    assert then.endswith("is imported")
    quiet = [sys.executable, "-c", LATE, *words, "trainer.progress=false"]
    assert "loading" not in subprocess.run(quiet, check=False, capture_output=True, text=True).stdout


def test_a_header_says_what_is_trained_on_what_and_for_how_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise UserError("far enough")

    monkeypatch.setattr("dgmbench.runs.run._Run", stop)
    words = ["model=gan", "data=digits", "trainer.budget=3ep", "trainer.batch_size=50", "hardware=cpu"]
    assert cli.main(["train", *words, f"paths.outputs={tmp_path}"]) == 2
    lines = capsys.readouterr().out.splitlines()[1:]
    (folder,) = tmp_path.iterdir()
    gan = build_model(RunFolder(folder).read_config(), DataSpec((1, 8, 8), "discrete", 17, 10))
    parameters = sum(p.numel() for p in gan.parameters())
    data = load_digits(return_X_y=True)[0]
    splits = [part for part in lines[0].partition(": ")[2].split(", ")]
    assert sum(int(part.split()[0].replace(",", "")) for part in splits) == len(data)
    assert [part.split()[1] for part in splits] == ["train", "valid", "test"]
    images = -(-3 * int(splits[0].split()[0].replace(",", "")) // 50) * 50  # whole batches
    assert lines[1:] == [
        "        discrete 1x8x8, 17 levels, 10 classes",
        f"model   gan: {parameters:,} parameters of 2 players (discriminator, generator)",
        f"budget  3ep: {images:,} images in batches of 50, on cpu",
        f"folder  {folder}",
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    objective = {"name": "elbo", "value": -28.0, "unit": "nats", "images": 1000}
    result = {"model": "vae", "data": "digits", "seed": 3, "objective": objective, "metrics": LATENT}
    (tmp_path / "config.yaml").write_text("seed: 3")
    (tmp_path / "result.json").write_text(json.dumps(result))
    return tmp_path


def test_show_has_all_numbers_or_those_that_are_asked_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*words: str) -> set[str]:
        assert cli.main(["show", f"run={run}", *words]) == 0
        out = capsys.readouterr().out
        assert out.endswith("vae on digits, seed 3; best elbo on validation: -28 nats after 1,000 images\n")
        return {line.split()[0] for line in out.splitlines() if "1a2b3c4d" in line}

    assert shown() == set(LATENT)
    assert shown("fd_", "elbo_*") == {"fd_classifier", "fd_bias_classifier", "elbo_bits_per_dim"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run={run}", "elbow"], "There is no number in this run called 'elbow'; did you mean elbo"),
        ([], "dgm show takes the folder of one run"),
        (["run={run}/nothing"], "is not the folder of a run"),
        (["run={run}/started"], "has no result yet"),
    ],
)
def test_show_says_what_is_wrong(
    run: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "started").mkdir()
    (run / "started" / "config.yaml").touch()
    assert cli.main(["show", *(word.format(run=run) for word in words)]) == 2
    assert sentence in capsys.readouterr().err

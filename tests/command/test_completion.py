"""Tab completion: what is offered, and that bash puts it into the line."""

import subprocess
import sys
from pathlib import Path

import pytest

from dgmbench.command.completion import BASH
from dgmbench.command.completion import candidates as candidates_of
from dgmbench.command.main import VERBS

OWN = Path(__file__).parent.parent / "my_configs"


def candidates(words: list[str]) -> list[str]:
    return candidates_of(words, VERBS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["train", "mod"], ["model="]),
        (["train", "model=va"], ["model=vae", "model=vae_gan"]),
        (["train", "-m", "model=vae,mad"], ["model=vae,made"]),
        (["train", "model=vae", "model.late"], ["model.latent="]),
        (["train", "model=rbm", "model.estimator=pc"], ["model.estimator=pcd", "model.estimator=pcd_5"]),
        (["train", "model=vae", "trainer.bud"], ["trainer.budget="]),
        (["train", "trainer=quick", "trainer.batch"], ["trainer.batch_size="]),
        (
            ["train", "optimizer.schedule.name=co"],
            ["optimizer.schedule.name=constant", "optimizer.schedule.name=cosine"],
        ),
        (["train", "--config-dir", str(OWN), "model=gau"], ["model=gaussian", "model=gaussian_rbm"]),
        (["train", "--config-dir", str(OWN), "model=gaussian", "model.ra"], ["model.rate="]),
        (["train", "--mu"], ["--multirun"]),
        (["verify", "model=mad"], ["model=made"]),
        (["evaluate", "protocol=q"], ["protocol=quick"]),
        (["sample", "checkpoint="], ["checkpoint=best", "checkpoint=final"]),
        (["list", "model/est"], ["model/estimator"]),
        (["list", "model=vae_"], ["model=vae_gan"]),
        (["completion", "z"], ["zsh"]),
        (["unknown", "x"], []),
    ],
)
def test_candidates(words: list[str], expected: list[str]) -> None:
    assert candidates(words) == expected


def test_nothing_typed_offers_the_verbs() -> None:
    assert {"train", "list", "rerun"} <= set(candidates([""]))
    assert candidates([]) == candidates([""])


def test_run_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vae-digits-s0-1", "made-digits-s0-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("", encoding="utf-8")
    (tmp_path / "bench").mkdir()
    (tmp_path / ".sweeps").mkdir()
    monkeypatch.setenv("DGM_OUTPUTS", str(tmp_path))
    assert candidates(["sample", f"run={tmp_path}/v"]) == [f"run={tmp_path}/vae-digits-s0-1"]
    assert candidates(["evaluate", "run="]) == sorted(
        f"run={tmp_path}/{name}" for name in ("bench/", "made-digits-s0-2", "vae-digits-s0-1")
    )
    assert candidates(["rerun", f"{tmp_path}/m"]) == [f"{tmp_path}/made-digits-s0-2"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dgm tra", "train"),
        ("dgm train model=va", "vae vae_gan"),  # bash replaces what follows the '='
        ("dgm train model=vae trainer.bud", "trainer.budget="),
        ("dgm train model=vae ", None),
    ],
)
def test_the_script_in_bash(line: str, expected: str | None, tmp_path: Path) -> None:
    program = tmp_path / "dgm"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dgmbench "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = (
        f'{BASH}\nPATH="{tmp_path}:$PATH"\nCOMP_LINE="{line}"\nCOMP_POINT={len(line)}\n_dgm\necho "${{COMPREPLY[*]}}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    if expected is None:
        assert {"data=", "seed=", "model.latent="} <= set(done.stdout.split())
    else:
        assert done.stdout.strip() == expected

"""A network that fits the data where nobody chose one, and a run that says which."""

from pathlib import Path

import pytest
import yaml

from dgmbench.command import main as cli
from dgmbench.data import DataSpec
from dgmbench.models.vae.vae import Vae
from dgmbench.nn.encoders import by_data


@pytest.mark.parametrize(
    ("shape", "net"),
    [((64,), "mlp"), ((50_000,), "mlp"), ((1, 64, 64), "mlp"), ((3, 32, 32), "mlp"), ((3, 64, 64), "conv")],
)
def test_large_images_get_convolutions(shape: tuple[int, ...], net: str) -> None:
    assert by_data("auto", shape) == net
    assert by_data("resnet", shape) == "resnet"


def test_a_vae_of_colour_pictures_has_few_weights() -> None:
    spec = DataSpec((3, 64, 64), "discrete", levels=256)
    assert sum(p.numel() for p in Vae(spec).parameters()) < 2e6
    assert sum(p.numel() for p in Vae(spec, net="mlp").parameters()) > 3e7


def test_the_run_says_which_and_is_named_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", "model=vae", "model.hidden_sizes=[4]", "model.latent=2", "trainer.budget=1ba", "hardware=cpu")
    words = (*words, "protocol=glance", "protocol.max_examples=10", "protocol.quality.samples=10")
    words = (*words, "protocol.quality.features=[]", f"paths.outputs={tmp_path}")
    assert cli.main(list(words)) == 0
    (run,) = tmp_path.glob("vae-*")
    assert "net=mlp, by the shape of the data" in capsys.readouterr().out
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["net"] == "mlp"
    assert cli.main([*words, "model.net=mlp"]) == 0  # the same run, which was done
    assert "was done already" in capsys.readouterr().out
    assert cli.main(["rerun", str(run)]) == 0
    assert "was done already" in capsys.readouterr().out

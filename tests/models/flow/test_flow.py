"""What all flows share: codes of data, interpolation, a temperature from the command line, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dgmbench.command import main as cli
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import CanDecode, CanEncode, HasBijection, HasTemperature
from dgmbench.models.flow.flow import START_VALUES, Flow
from dgmbench.models.flow.glow import Glow
from dgmbench.models.flow.nice import Nice
from dgmbench.models.flow.realnvp import RealNvp
from dgmbench.nn.bijections import ActNorm, Bijection, Flatten

IMAGE = DataSpec((1, 4, 4), "discrete", levels=5)
FLOWS = {
    "nice": lambda spec: Nice(spec, hidden_sizes=(8,)),
    "realnvp": lambda spec: RealNvp(spec, channels=2, blocks=1),
    "glow": lambda spec: Glow(spec, steps=2, width=4),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(name: str, spec: DataSpec) -> Flow:
    torch.manual_seed(0)
    model = FLOWS[name](spec).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("name", FLOWS)
@torch.no_grad()
def test_codes_lead_back_to_data_and_the_code_of_levels_is_that_of_the_cells_centre(name: str) -> None:
    model = shaken(name, IMAGE)
    for capability in (CanEncode, CanDecode, HasBijection, HasTemperature):
        assert isinstance(model, capability)
    x = torch.randint(5, (6, 1, 4, 4), generator=generator()).byte()
    code = model.encode(x)
    assert code.shape == (6, 16)
    assert torch.allclose(model.decode(code), x.double(), atol=1e-8)
    assert torch.equal(model.encode(x), code), "no noise in a code"
    assert torch.allclose(code, model.bijection(x.double() + 0.5)[0])
    far = model.decode(50 * torch.randn(4, 16, dtype=torch.float64, generator=generator()))
    assert far.min() >= 0
    assert far.max() <= 4
    real = shaken(name, DataSpec((1, 4, 4), "real"))
    v = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=generator())
    assert torch.allclose(real.decode(real.encode(v)), v, atol=1e-8)


@torch.no_grad()
def test_codes_between_two_examples_give_data_between_them() -> None:
    """For an affine flow the path is a straight line."""
    model = Nice(DataSpec((3,), "real"), hidden_sizes=()).double()
    for p in model.parameters():
        p.add_(0.3 * torch.randn(p.shape, generator=generator(), dtype=p.dtype))
    a, b = torch.randn(2, 3, dtype=torch.float64, generator=generator())
    codes = model.encode(torch.stack([a, b]))
    middle = model.decode(codes.mean(0, keepdim=True))[0]
    assert torch.allclose(middle, (a + b) / 2)


def test_the_start_takes_no_more_examples_than_memory_allows() -> None:
    seen = []

    class Watching(Flow):
        def __init__(self, spec: DataSpec) -> None:
            super().__init__(spec)
            self.compose([ActNorm(3), Flatten(spec.shape)])

        def _given(self, v):
            seen.append(len(v))
            return super()._given(v)

    side = 64
    model = Watching(DataSpec((3, side, side), "real"))
    model.initialise(Batch(torch.randn(100, 3, side, side)), generator())
    assert seen == [max(64, START_VALUES // (3 * side**2))]
    assert isinstance(model.bijection, Bijection)


@pytest.mark.parametrize("name", FLOWS)
def test_labels_are_left_out_of_an_unconditional_flow(name: str) -> None:
    model = shaken(name, DataSpec((1, 4, 4), "discrete", levels=5, num_classes=3))
    x = torch.randint(5, (4, 1, 4, 4), generator=generator()).byte()
    with_labels = model.loss("model", Batch(x, torch.tensor([0, 1, 2, 0])), generator())[0]
    assert torch.equal(with_labels, model.loss("model", Batch(x), generator())[0])
    assert not hasattr(model, "class_log_prior")
    with pytest.raises(UserError, match="labels"):
        model.elbo(x, y=torch.tensor([0, 1, 2, 0]), generator=generator())


def test_samples_at_a_temperature_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=nice", "model.hidden_sizes=[8]", "trainer.budget=3ba", "trainer.progress=false", "protocol=quick"]
    assert cli.main(["train", *words, f"paths.outputs={tmp_path}"]) == 0
    run = Path(capsys.readouterr().out.splitlines()[-1])
    spread = []
    for word in ("temperature=1", "temperature=0.1", "temperature=0"):
        assert cli.main(["sample", f"run={run}", "n=20", word]) == 0
        picture, array = map(Path, capsys.readouterr().out.splitlines()[-2:])
        assert picture.stem.endswith("-t" + word.partition("=")[2])
        spread.append(np.load(array)["x"].astype(float).std(0).mean())
    assert spread[0] > spread[1] > spread[2] == 0
    assert cli.main(["sample", f"run={run}", "temperature=-1"]) == 2
    assert "temperature=-1" in capsys.readouterr().err

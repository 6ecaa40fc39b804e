"""Modules of a user's own: what they are known by, and that what they cannot do shows before anything is trained."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgmbench.command.main import main
from dgmbench.config import complete, compose
from dgmbench.data import DataSet
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.features import reference
from dgmbench.evaluation.features.build import check_names, complete_net, require_nets
from dgmbench.evaluation.features.net import FeatureNet
from dgmbench.evaluation.features.reference import data_features

Build = Callable[..., FeatureNet]
Digits = Callable[..., DataSet]

MODULES = """
import numpy as np
import torch
from torch import nn
from dgmbench.evaluation.features.inception_tf import InceptionTf
from dgmbench.evaluation.features.pixel import Pixel
from own_library import Layer
from own_part import FACTOR, Part

class First(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :32]

class Second(nn.Module):
    def forward(self, x):
        return 100 * x.flatten(1)[:, 32:]

class Halves(nn.Module):
    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = factor
    def forward(self, x):
        return self.factor * torch.stack([part.mean((1, 2, 3)) for part in x.chunk(2, 2)], 1)

class Drawn(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 8)
    def forward(self, x):
        return self.layer(x.flatten(1))

class Hidden(nn.Module):
    '''What it multiplies by is no parameter, and read from elsewhere.'''
    def __init__(self, path: str = "a", kind: str = "attribute", value: float = 1.0):
        super().__init__()
        if kind == "attribute":
            self.w = torch.full((1,), float(len(path))) * FACTOR
        elif kind == "array":
            self.w = np.full(1, self.outside(), dtype=np.float32)
        else:
            self.register_buffer("w", torch.full((1,), self.outside()), persistent=False)
    @staticmethod
    def outside():
        return 1.0
    def forward(self, x):
        return x.flatten(1) * torch.as_tensor(self.w)

class Half(nn.Module):
    def __init__(self, converts: bool = False):
        super().__init__()
        self.converts = converts
        self.layer = nn.Linear(64, 4).to(torch.bfloat16)
    def forward(self, x):
        x = x.flatten(1)
        return self.layer(x.bfloat16() if self.converts else x)

class Mapped(nn.Module):
    def forward(self, x):
        return x.flatten(1), x

class Flat(nn.Module):
    def forward(self, x):
        return x

class Scalar(nn.Module):
    def forward(self, x):
        return x.mean()

class Nothing(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :0]

class Complex(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x.flatten(1))

class Three(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
    def forward(self, x):
        return self.conv(x).flatten(1)

class Nan(nn.Module):
    def forward(self, x):
        return x.flatten(1).log()

class Constant(nn.Module):
    def forward(self, x):
        return torch.ones(len(x), 4)

class Noisy(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x.flatten(1), 0.5, training=True)

class OfTheBatch(nn.Module):
    def forward(self, x):
        return x.flatten(1) - x.flatten(1).mean(0)

class Missing(nn.Module):
    def __init__(self):
        super().__init__()
        self.load_state_dict(torch.load("no_such_file.pth"))

class MyInception(InceptionTf):
    def require(self, data, folder): pass
    def prepare(self, data, folder, note): pass
    def features(self, x):
        return x.flatten(1)

class Tall(Pixel):
    def features(self, x):
        return x.no_such_thing()

class Seeking(Pixel):
    def prepare(self, data, folder, note):
        raise FileNotFoundError("no_such_file.pth")

def made(layers: int = 1):
    return nn.Sequential(nn.Flatten(), *[nn.Linear(64, 64) for _ in range(layers)])

def reads():
    return Part()

def mixed():
    return nn.Sequential(nn.Flatten(), Layer())
"""
PART = """
from torch import nn
FACTOR = 1.0
class Part(nn.Module):
    def forward(self, x):
        return 1 * x.flatten(1)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Nodes of the modules above; with ``write`` they come from a changed source."""
    monkeypatch.syspath_prepend(str(tmp_path))

    library = tmp_path / "elsewhere" / "own_library.py"
    library.parent.mkdir()
    monkeypatch.syspath_prepend(str(library.parent))

    def forget() -> None:
        for name in ("own_nets", "own_part", "own_library"):
            sys.modules.pop(name, None)

    def write(modules: str = MODULES, part: str = PART, layer: str = PART) -> None:
        (tmp_path / "own_nets.py").write_text(modules)
        (tmp_path / "own_part.py").write_text(part)
        library.write_text(layer.replace("Part", "Layer"))
        forget()

    def node(module: str, /, **settings: Any) -> dict[str, Any]:
        return {"_target_": f"own_nets.{module}", **settings}

    write()
    node.write = write  # type: ignore[attr-defined]
    yield node
    forget()


# ---------------------------------------------------------------------- what they compute and are known by


def test_a_module_by_its_target(own: Any, digits: Digits, build: Build) -> None:
    data = digits()
    net = build(own("Halves", name="halves", factor=3.0), data)
    x = torch.from_numpy(data.splits["test"].x[:5])
    expected = 3 * torch.stack([x[:, 0, :4].float().mean((1, 2)), x[:, 0, 4:].float().mean((1, 2))], 1) / 16
    torch.testing.assert_close(net(x), expected)
    assert net.label("kid") == "kid_halves"
    record = net.record()
    assert (record["net"], record["net_class"], record["net_settings"]) == (
        "halves",
        "own_nets.Halves",
        {"factor": 3.0},
    )
    assert record["net_hash"] == net.hash[:16]
    assert build(own("made", layers=2), data).label("fd") == "fd_made"  # a function may make it too
    with pytest.raises(UserError, match="There is no features setting 'factr'; did you mean factor"):
        build(own("Halves", factr=1.0), data)


def test_the_hash_tells_classes_settings_and_weights_apart(own: Any, digits: Digits, build: Build) -> None:
    data = digits()

    def hashed(module: str, **settings: Any) -> str:
        return build(own(module, name="mine", **settings), data).hash

    assert hashed("First") == hashed("First") != hashed("Second")  # one file, one name, no settings, no weights
    assert hashed("Halves") != hashed("Halves", factor=2.0)
    assert hashed("Hidden", path="a") != hashed("Hidden", path="b")  # to an own net a path may mean anything
    assert hashed("made") != hashed("reads")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    drawn = hashed("Drawn")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert hashed("Drawn") == drawn  # its weights are drawn anew, but always the same


def test_the_hash_sees_changed_code_and_what_no_state_dict_holds(own: Any, digits: Digits, build: Build) -> None:
    data = digits()

    def both(module: str, **settings: Any) -> tuple[str, str]:
        net = build(own(module, name="mine", **settings), data)
        return net.hash, net.record()["net_source"]

    before = both("First"), both("reads"), both("mixed")
    assert (both("First"), both("reads"), both("mixed")) == before
    own.write(MODULES.replace(":32]", ":32] * 2"))
    assert all(a != b for a, b in zip(both("First"), before[0], strict=True))
    own.write(part=PART.replace("1 * x", "2 * x"))  # a part of another file
    assert all(a != b for a, b in zip(both("reads"), before[1], strict=True))
    own.write(layer=PART.replace("1 * x", "2 * x"))  # a class of a library
    assert all(a != b for a, b in zip(both("mixed"), before[2], strict=True))
    assert both("First") == before[0]
    # not the code: what it finds outside, in attributes and in buffers that are not saved
    own.write()
    import own_nets  # type: ignore[import-not-found]

    for kind in ("array", "buffer"):
        found = []
        for value in (1.0, 2.0):
            own_nets.Hidden.outside = staticmethod(lambda value=value: value)
            found.append(both("Hidden", kind=kind))
        assert found[0][1] == found[1][1]
        assert found[0][0] != found[1][0]


def test_no_features_of_another_net_are_served(own: Any, digits: Digits, build: Build, tmp_path: Path) -> None:
    data = digits()
    chunks = Chunks(data, "test", seed=0)
    x = torch.from_numpy(data.splits["test"].x).float().flatten(1) / 16
    for node, expected in ((own("First", name="mine"), x[:, :32]), (own("Second", name="mine"), 100 * x[:, 32:])):
        torch.testing.assert_close(data_features(build(node, data), chunks, tmp_path / "features"), expected)
    assert len(list((tmp_path / "features").iterdir())) == 2  # neither took the place of the other
    own.write(MODULES.replace(":32]", ":32] * 2"))
    for forget in (True, False):
        if forget:
            reference._memory.clear()
        found = data_features(build(own("First", name="mine"), data), chunks, tmp_path / "features")
        torch.testing.assert_close(found, 2 * x[:, :32])


# ---------------------------------------------------------------------- what is refused, before anything is trained


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Mapped", r"The feature net mapped \(own_nets\.Mapped\) returned a tuple; it must return one tensor \(n, d\)"),
        ("Flat", r"returned shape \(\d+, 1, 8, 8\) for \d+ examples; it must return \(n, d\)"),
        ("Scalar", r"returned shape \(\) for \d+ examples"),
        ("Nothing", r"returned shape \(\d+, 0\) for \d+ examples"),
        ("Complex", r"returned complex values of shape"),
        ("Three", r"fails on float32 values of shape \(\d+, 1, 8, 8\): RuntimeError: Given groups=1"),
        ("Half", r"\(its weights are torch\.bfloat16\) fails on float32 values"),
        ("Nan", r"gives features that are not finite for \d+ of \d+ examples"),
        ("Constant", r"gives \d+ different examples the same features"),
        ("Noisy", "gives the same examples other features in another batch"),
        ("OfTheBatch", "gives the same examples other features in another batch"),
        ("Missing", r"own_nets\.Missing fails: FileNotFoundError: .*no_such_file\.pth"),
    ],
)
def test_a_dry_run_finds_what_a_module_cannot_do(
    name: str, sentence: str, own: Any, digits: Digits, build: Build
) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        require_nets([own(name)], digits(), None)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=sentence):
        build(own(name), digits())


def test_a_feature_net_of_ones_own_is_tried_as_well(own: Any, digits: Digits, build: Build) -> None:
    with pytest.raises(UserError, match=r"The feature net tall \(own_nets\.Tall\) fails: AttributeError: "):
        build(own("Tall"), digits())
    with pytest.raises(UserError, match=r"The feature net seeking \(own_nets\.Seeking\) fails: FileNotFoundError: "):
        build(own("Seeking"), digits())


def test_weights_in_half_precision_serve_if_the_module_converts(own: Any, digits: Digits, build: Build) -> None:
    net = build(own("Half", converts=True), digits())
    found = net(torch.from_numpy(digits().splits["test"].x[:7]))
    assert (found.dtype, found.shape) == (torch.float32, (7, 4))
    assert len(net.hash) == 64


def test_a_bad_module_stops_the_command_before_the_training(
    own: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["model=made", "data=digits", "trainer.budget=20ba", "protocol=quick", f"paths.outputs={tmp_path}/runs"]
    code = main(["train", *overrides, "protocol.quality.features=[{_target_:own_nets.Mapped}]"])
    assert code == 2
    assert "dgm: The feature net mapped (own_nets.Mapped) returned a tuple" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*/*"))


def test_two_nets_of_one_name_are_refused(own: Any, digits: Digits) -> None:
    pixel = "dgmbench.evaluation.features.pixel.Pixel"
    for features, name in (
        ("[{_target_:own_nets.Halves,factor:1.0},{_target_:own_nets.Halves,factor:2.0}]", "halves"),
        (f"[pixel,{{_target_:{pixel},size:4}}]", "pixel"),
    ):
        with pytest.raises(UserError, match=f"Two feature nets are named {name}; give each its own"):
            complete(compose("train", ["model=vae", f"protocol.quality.features={features}"]))
    with pytest.raises(UserError, match="Two feature nets are named halves"):
        require_nets([own("Halves"), own("Halves", factor=2.0)], digits(), None)
    with pytest.raises(UserError, match="Numbers of the feature nets pixel and pixel_train would have one name"):
        check_names([complete_net("pixel"), complete_net({"_target_": pixel, "name": "pixel_train"})])


def test_nobody_else_is_called_fid_or_inception_score(own: Any, digits: Digits, build: Build) -> None:
    net = build(own("MyInception"), digits())
    assert [net.label(m) for m in ("fd", "score")] == ["fd_my_inception", "my_inception_score"]
    for name in ("inception", "inception_tf"):
        with pytest.raises(UserError, match=f"The name {name} is reserved"):
            complete_net(own("MyInception", name=name))
        with pytest.raises(UserError, match=f"The name {name} is reserved"):
            complete_net(own("Halves", name=name))


def test_numbers_that_are_not_finite_never_become_features(own: Any, digits: Digits, build: Build) -> None:
    data = digits()
    own.write(MODULES.replace("x.flatten(1).log()", "x.flatten(1) / (x.flatten(1).sum(1, keepdim=True) != 7)"))
    net = build(own("Nan"), data)  # the dry run has met no sum of 7
    x = np.zeros((3, 1, 8, 8), np.uint8)
    x[1, 0, :7, 0] = 16
    x[:, 0, 7, 7] = [16, 0, 0]
    with pytest.raises(UserError, match=r"gives features that are not finite for 1 of 3 examples"):
        net(torch.from_numpy(x))

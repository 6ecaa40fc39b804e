"""Feature nets: what they compute, what they are known by, what they refuse."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dgmbench.config import complete, compose
from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.errors import UserError
from dgmbench.evaluation.features.build import default_features
from dgmbench.evaluation.features.net import FeatureNet, hash_of_code
from dgmbench.evaluation.features.pixel import Pixel
from dgmbench.evaluation.features.random_conv import RandomConv
from dgmbench.source import source_hash

GREY = DataSpec((1, 8, 8), "discrete", levels=17, num_classes=10)


Build = Callable[..., FeatureNet]
Digits = Callable[..., DataSet]

# ---------------------------------------------------------------------- names and hashes


def test_a_hash_is_a_function_of_the_class_the_settings_and_the_weights(digits: Digits, build: Build) -> None:
    data = digits()
    first, again = build("random_conv", data), build("random_conv", data)
    other = build({"_target_": "dgmbench.evaluation.features.random_conv.RandomConv", "seed": 1}, data)
    small = build({"_target_": "dgmbench.evaluation.features.pixel.Pixel", "size": 4}, data)
    assert first.hash == again.hash
    assert len({first.hash, other.hash, small.hash, build("pixel", data).hash}) == 4
    assert first.record() == {
        "net": "random_conv",
        "net_class": "dgmbench.evaluation.features.random_conv.RandomConv",
        "net_source": source_hash(RandomConv),
        "net_settings": {"seed": 0},
        "net_hash": first.hash[:16],
    }
    # no weight may depend on the machine: numpy's frozen stream, first value 2 * 0.5488... - 1 times the bound
    assert float(first.weight0.flatten()[0]) == pytest.approx((2 * 0.5488135039273248 - 1) * math.sqrt(6 / 9))
    same, changed = RandomConv(data.spec), RandomConv(data.spec)
    changed.bias0[3] += 1
    assert changed.hash != same.hash


def test_the_code_of_the_nets_that_come_with_the_package_counts(
    digits: Digits, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another release had other code, here and in what it imports."""
    data = digits()
    net, read = build("pixel", data), Path.read_bytes
    before = net.record()["net_source"]
    for changed in ("pixel.py", "net.py", "scaling.py"):
        with monkeypatch.context() as patch:
            hash_of_code.cache_clear()
            patch.setattr(Path, "read_bytes", lambda path, name=changed: read(path) + b"A = 1\n" * (path.name == name))
            other = build("pixel", data)
            assert other.hash != net.hash
            assert other.record()["net_source"] != before
    hash_of_code.cache_clear()
    assert build("pixel", data).hash == net.hash


def test_names(digits: Digits, build: Build) -> None:
    data = digits()
    assert build("random_conv", data).label("fd") == "fd_random_conv"
    assert build("random_conv", data).label("fd", "train") == "fd_random_conv_train"
    assert build("classifier", data).label("score") == "classifier_score"
    assert build({"_target_": "dgmbench.evaluation.features.random_conv.RandomConv"}, data).name == "random_conv"
    with pytest.raises(UserError, match="The name inception_tf is reserved"):
        build({"_target_": "dgmbench.evaluation.features.pixel.Pixel", "name": "inception_tf"}, data)
    with pytest.raises(UserError, match=r"features\.name=A b must consist"):
        build({"_target_": "dgmbench.evaluation.features.pixel.Pixel", "name": "A b"}, data)
    with pytest.raises(UserError, match="There is no features 'clasifier'; did you mean classifier"):
        build("clasifier", data)


def test_values_outside_the_space_of_the_data_are_refused(digits: Digits, build: Build) -> None:
    net = build("pixel", digits())
    with pytest.raises(UserError, match=r"float32 values of shape \(1, 8, 8\), but the data are discrete 1x8x8"):
        net(torch.rand(2, 1, 8, 8))
    with pytest.raises(UserError, match=r"values of shape \(64,\)"):
        net(torch.zeros(2, 64, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"A value is 17, but the data have the levels 0 \.\.\. 16"):
        net(torch.full((2, 1, 8, 8), 17, dtype=torch.uint8))
    real = Pixel(DataSpec((3,), "real"))
    with pytest.raises(UserError, match="1 of 2 examples have values that are not finite"):
        real(torch.tensor([[0.0, 1, 2], [torch.inf, 1, 2]]))


# ---------------------------------------------------------------------- what they compute


def test_pixels_are_values_and_large_images_means_of_them() -> None:
    x = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    net = Pixel(DataSpec((3, 64, 64), "discrete", levels=256))
    means = x.float().reshape(2, 3, 32, 2, 32, 2).mean((3, 5)) / 255
    torch.testing.assert_close(net(x), means.flatten(1))
    small = x[:, :, :8, :8]
    torch.testing.assert_close(Pixel(DataSpec((3, 8, 8), "discrete", levels=256))(small), small.flatten(1) / 255)


@pytest.mark.parametrize("spec", [GREY, DataSpec((3, 33, 20), "discrete", levels=256), DataSpec((1, 2, 2), "binary"),
                                  DataSpec((7,), "real")])  # fmt: skip
def test_random_features_exist_for_every_size_and_tell_examples_apart(spec: DataSpec) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn((9, *spec.shape), generator=g) if spec.kind == "real" else torch.randint(
        0, spec.levels or 2, (9, *spec.shape), generator=g, dtype=torch.uint8)  # fmt: skip
    net = RandomConv(spec)
    found = net(x)
    assert found.shape == (9, 128)
    assert len(found.unique(dim=0)) == len(x.flatten(1).unique(dim=0))
    torch.testing.assert_close(torch.cat([net(x[:4]), net(x[4:])]), found)


def test_unbounded_data_are_standardised_by_the_training_split(build: Build) -> None:
    x = (np.random.RandomState(0).randn(200, 3) * [1, 10, 0] + [5, -3, 2]).astype(np.float32)
    split = Split(x, None)
    data = DataSet("toy", DataSpec((3,), "real"), {"train": split, "valid": split, "test": split}, "1" * 64)
    net = build("random_conv", data)
    standardised = net.standardised(torch.from_numpy(x))
    torch.testing.assert_close(standardised.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(standardised.std(0, unbiased=False), torch.tensor([1.0, 1.0, 0.0]))
    assert default_features(data) == ["random_conv"]


# ---------------------------------------------------------------------- the configuration


def test_names_in_a_protocol_become_complete_nodes() -> None:
    cfg = compose("train", ["model=vae", "protocol.quality.features=[pixel,random_conv]"])
    features = complete(cfg)["protocol"]["quality"]["features"]
    assert [node["name"] for node in features] == ["pixel", "random_conv"]
    assert (features[0]["size"], features[1]["seed"]) == (32, 0)
    assert complete(compose("train", ["model=vae"]))["protocol"]["quality"] == {"samples": 1000, "features": None}
    fid = complete(compose("train", ["model=vae", "protocol=fid50k_train"]))["protocol"]["quality"]
    assert (fid["samples"], fid["features"][0]["name"]) == (50_000, "inception_tf")
    with pytest.raises(UserError, match="did you mean pixel"):
        complete(compose("train", ["model=vae", "protocol.quality.features=[pixl]"]))
    with pytest.raises(UserError, match=r"protocol\.quality\.features=pixel must be a list of names"):
        complete(compose("train", ["model=vae", "protocol.quality.features=pixel"]))
    with pytest.raises(UserError, match=r"protocol\.quality\.samples=1 must be at least 2"):
        complete(compose("train", ["model=vae", "protocol.quality.samples=1"]))


def test_an_own_folder_of_configurations_has_its_own_nets(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "tiny.yaml").write_text(
        "name: tiny\n_target_: dgmbench.evaluation.features.pixel.Pixel\nsize: 4\n"
    )
    cfg = compose("train", ["model=vae", "protocol.quality.features=[tiny]"], config_dirs=[tmp_path])
    assert complete(cfg)["protocol"]["quality"]["features"] == [
        {"_target_": "dgmbench.evaluation.features.pixel.Pixel", "name": "tiny", "size": 4}
    ]

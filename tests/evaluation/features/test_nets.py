"""Feature nets: what they compute, what they are known by, what they refuse."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.config import complete, compose, resolve
from dgmbench.data import DataSet, DataSpec, Split, load
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.features import reference
from dgmbench.evaluation.features.build import build_net, check_names, default_features
from dgmbench.evaluation.features.classifier import SHIPPED, Classifier
from dgmbench.evaluation.features.inception_tf import InceptionTf, MixedE, resize_tf1
from dgmbench.evaluation.features.net import FeatureNet
from dgmbench.evaluation.features.pixel import Pixel
from dgmbench.evaluation.features.random_conv import RandomConv
from dgmbench.evaluation.features.reference import data_features

CPU = torch.device("cpu")
GREY = DataSpec((1, 8, 8), "discrete", levels=17, num_classes=10)


@pytest.fixture(scope="module")
def inception() -> InceptionTf:
    torch.manual_seed(0)
    return InceptionTf(DataSpec((3, 32, 32), "discrete", levels=256))


def digits(name: str = "digits") -> DataSet:
    return load(resolve(compose("train", ["model=made", f"data={name}"]))["data"], Path())


def stripes(n: int = 300, *, labels: bool = True) -> DataSet:
    """Binary 4 x 4 images, rows of class 0 and columns of class 1, with a tenth of the pixels turned."""
    random = np.random.RandomState(0)
    y = random.randint(0, 2, n)
    lines = np.tile((random.rand(n, 4) < 0.5)[:, :, None], (1, 1, 4))
    x = np.where(y[:, None, None] == 0, lines, lines.transpose(0, 2, 1)) ^ (random.rand(n, 4, 4) < 0.02)
    split = Split(x.astype(np.uint8)[:, None], y.astype(np.int64) if labels else None)
    spec = DataSpec((1, 4, 4), "binary", num_classes=2 if labels else None)
    return DataSet("stripes", spec, {"train": split, "valid": split, "test": split}, f"{int(labels)}" * 64)


def build(node: Any, data: DataSet, folder: Path | None = None) -> FeatureNet:
    return build_net(node, data, folder=folder, device=CPU)


# ---------------------------------------------------------------------- names and hashes


def test_a_hash_is_a_function_of_the_class_the_settings_and_the_weights() -> None:
    data = digits()
    first, again = build("random_conv", data), build("random_conv", data)
    other = build({"_target_": "dgmbench.evaluation.features.random_conv.RandomConv", "seed": 1}, data)
    small = build({"_target_": "dgmbench.evaluation.features.pixel.Pixel", "size": 4}, data)
    assert first.hash == again.hash
    assert len({first.hash, other.hash, small.hash, build("pixel", data).hash}) == 4
    assert first.record() == {"net": "random_conv", "net_hash": first.hash[:16], "net_settings": {"seed": 0}}
    # no weight may depend on the machine: numpy's frozen stream, first value 2 * 0.5488... - 1 times the bound
    assert float(first.weight0.flatten()[0]) == pytest.approx((2 * 0.5488135039273248 - 1) * math.sqrt(6 / 9))


def test_only_inception_may_be_called_fid(inception: InceptionTf) -> None:
    data = digits()
    assert build("random_conv", data).label("fd") == "fd_random_conv"
    assert build("random_conv", data).label("fd", "train") == "fd_random_conv_train"
    assert build("classifier", data).label("score") == "classifier_score"
    assert [inception.label(m) for m in ("fd", "score")] == ["fid", "inception_score"]
    assert inception.label("fd", "train") == "fid_train"
    with pytest.raises(UserError, match="The name inception_tf is reserved"):
        build({"_target_": "dgmbench.evaluation.features.pixel.Pixel", "name": "inception_tf"}, data)
    with pytest.raises(UserError, match=r"features\.name=A b must consist"):
        build({"_target_": "dgmbench.evaluation.features.pixel.Pixel", "name": "A b"}, data)
    with pytest.raises(UserError, match="Two feature nets are named pixel"):
        check_names([{"name": "pixel"}, {"name": "pixel"}])
    with pytest.raises(UserError, match="There is no features 'clasifier'; did you mean classifier"):
        build("clasifier", data)


class Halves(nn.Module):
    """A user's own net: the means of the upper and the lower half."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * torch.stack([part.mean((1, 2, 3)) for part in x.chunk(2, 2)], 1)


def test_an_own_module_by_its_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "own_features.py").write_text(
        "import torch\nfrom torch import nn\nclass Halves(nn.Module):\n"
        "    def __init__(self, factor: float = 1.0):\n        super().__init__()\n        self.factor = factor\n"
        "    def forward(self, x):\n"
        "        return self.factor * torch.stack([part.mean((1, 2, 3)) for part in x.chunk(2, 2)], 1)\n"
        "class Flat(nn.Module):\n    def forward(self, x):\n        return x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = digits()
    net = build({"_target_": "own_features.Halves", "name": "halves", "factor": 3.0}, data)
    x = torch.from_numpy(data.splits["test"].x[:5])
    torch.testing.assert_close(net(x), 3 * Halves()(x.float() / 16))
    assert net.label("kid") == "kid_halves"
    assert net.hash != build({"_target_": "own_features.Halves", "name": "halves"}, data).hash
    with pytest.raises(UserError, match=r"returned shape \(5, 1, 8, 8\) for 5 examples; it must return \(n, d\)"):
        build({"_target_": "own_features.Flat"}, data)(x)
    with pytest.raises(UserError, match="There is no features setting 'factr'; did you mean factor"):
        build({"_target_": "own_features.Halves", "factr": 1.0}, data)


def test_values_outside_the_space_of_the_data_are_refused() -> None:
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


def test_unbounded_data_are_standardised_by_the_training_split() -> None:
    x = (np.random.RandomState(0).randn(200, 3) * [1, 10, 0] + [5, -3, 2]).astype(np.float32)
    split = Split(x, None)
    data = DataSet("toy", DataSpec((3,), "real"), {"train": split, "valid": split, "test": split}, "1" * 64)
    net = build("random_conv", data)
    standardised = net.standardised(torch.from_numpy(x))
    torch.testing.assert_close(standardised.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(standardised.std(0, unbiased=False), torch.tensor([1.0, 1.0, 0.0]))
    assert default_features(data) == ["random_conv"]


# ---------------------------------------------------------------------- the classifier


@pytest.mark.parametrize("name", ["digits", "digits_binary"])
def test_the_shipped_classifier_is_as_good_as_its_record_says(name: str, tmp_path: Path) -> None:
    data = digits(name)
    assert default_features(data) == ["classifier"]
    net = build("classifier", data, tmp_path)
    assert list(tmp_path.iterdir()) == []  # nothing was trained
    record = json.loads((SHIPPED / f"{name}.json").read_text())
    assert net.record()["net_accuracy"] == record["accuracy"]
    for split in ("valid", "test"):
        part = data.splits[split]
        right = net.logits(net(torch.from_numpy(part.x))).argmax(1) == torch.from_numpy(part.y)
        assert float(right.float().mean()) == pytest.approx(record["accuracy"][split], abs=1e-6)
    assert record["accuracy"]["test"] > 0.93
    train = net(torch.from_numpy(data.splits["train"].x))
    assert float(train.square().mean()) == pytest.approx(1, abs=0.01)


def test_a_classifier_is_trained_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, node = (
        stripes(),
        {"_target_": "dgmbench.evaluation.features.classifier.Classifier", "images": 6000, "width": 4},
    )
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch.no_grad():  # as within an evaluation
        net = build(node, data, tmp_path / "features")
    assert torch.equal(before, torch.get_rng_state())
    assert isinstance(net, Classifier)
    assert net.accuracy["test"] > 0.8
    assert not any(p.requires_grad for p in net.parameters())
    assert build(node, data).hash == net.hash  # trained again, to the same bits

    def never(*args: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Classifier, "_train", never)
    assert build(node, data, tmp_path / "features").hash == net.hash
    with pytest.raises(AssertionError, match="trained again"):
        build({**node, "seed": 1}, data, tmp_path / "features")
    (kept,) = (tmp_path / "features").glob("classifier-stripes-*/classifier.npz")
    kept.write_bytes(kept.read_bytes()[:-10])
    with pytest.raises(UserError, match="its checksum is not that of its record"):
        build(node, data, tmp_path / "features")


def test_a_classifier_needs_labels() -> None:
    data = stripes(labels=False)
    with pytest.raises(UserError, match="needs data with labels, and these have none; use random_conv"):
        build("classifier", data)
    assert default_features(data) == ["random_conv"]


# ---------------------------------------------------------------------- TensorFlow's Inception


def tf1_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The rule in loops over output pixels: corners on corners, the last row and column repeated."""
    rows, columns = image.shape
    result = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            y, x = (
                np.float32(i) * (np.float32(rows) / np.float32(height)),
                np.float32(j) * (np.float32(columns) / np.float32(width)),
            )
            top, left = int(np.floor(y)), int(np.floor(x))
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            dy, dx = float(y) - top, float(x) - left
            above = image[top, left] * (1 - dx) + image[top, right] * dx
            below = image[bottom, left] * (1 - dx) + image[bottom, right] * dx
            result[i, j] = above * (1 - dy) + below * dy
    return result


@pytest.mark.parametrize(
    ("old", "new"), [((8, 8), (29, 29)), ((5, 9), (11, 4)), ((32, 32), (10, 13)), ((6, 6), (6, 6))]
)
def test_resize_is_that_of_tensorflow_1(old: tuple[int, int], new: tuple[int, int]) -> None:
    image = np.random.RandomState(0).randint(0, 256, old).astype(np.float64)
    found = resize_tf1(torch.from_numpy(image).float()[None, None], *new)[0, 0]
    np.testing.assert_allclose(found.numpy(), tf1_bilinear(image, *new), atol=1e-3)
    if old != new:  # what other tools do instead
        theirs = F.interpolate(torch.from_numpy(image)[None, None], new, mode="bilinear", align_corners=False)[0, 0]
        assert float((theirs - found).abs().max()) > 5


def test_a_ramp_grows_by_the_ratio_and_stops_at_the_edge() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 1, 4)
    expected = torch.tensor([0, 0.5, 1, 1.5, 2, 2.5, 3, 3])  # half-pixel centres would give 0, 0.25, 0.75, ...
    torch.testing.assert_close(resize_tf1(ramp, 1, 8)[0, 0, 0], expected)


def test_the_network_has_the_published_shape(inception: InceptionTf) -> None:
    weights = sum(p.numel() for p in inception.parameters())
    # Inception-v3 with 1000 classes and without auxiliary head has 23,834,568 weights; eight classes more are 8 * 2049
    assert weights == 23_834_568 + 8 * 2049
    buffers = sum(b.numel() for n, b in inception.named_buffers() if "running" in n)
    # the published file has 95,628,359 bytes, some 100 kB of them names and headers
    assert 0 < 95_628_359 - 4 * (weights + buffers) < 200_000
    x = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        found = inception(x)
        assert found.shape == (2, 2048)
        torch.testing.assert_close(inception(x[:1]), found[:1], rtol=1e-4, atol=1e-5)
        logits = inception.logits(found)
        assert logits.shape == (2, 1008)
        torch.testing.assert_close(logits, inception.fc(found) - inception.fc.bias)


def test_its_pools_leave_padding_out_and_the_last_block_takes_maxima() -> None:
    seen = []
    for max_pool in (False, True):
        block = MixedE(2, max_pool=max_pool)
        block.branch_pool.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        block.eval()(torch.ones(1, 2, 4, 4).index_fill_(3, torch.tensor([3]), 3.0))
    mean, largest = seen
    assert float(mean[0, 0, 0, 0]) == 1  # of four ones; with the padding it would be 4/9
    assert float(mean[0, 0, 0, 3]) == 2
    assert float(largest[0, 0, 0, 2]) == 3


def test_weights_must_be_there_and_be_the_published_ones(inception: InceptionTf, tmp_path: Path) -> None:
    data = digits()
    with pytest.raises(
        UserError, match=r"needs the weights pt_inception-2015-12-05-6726825d\.pth, and .* does not exist"
    ):
        build("inception_tf", data, tmp_path)
    file = tmp_path / "other.pth"
    state = {name: value for name, value in inception.state_dict().items() if "num_batches" not in name}
    torch.save(state, file)
    node = {"_target_": "dgmbench.evaluation.features.inception_tf.InceptionTf", "path": str(file)}
    with pytest.raises(UserError, match="not the published sha256:6726825d"):
        build(node, data)
    before = inception.fc.weight.clone()
    inception.fc.weight.data.zero_()
    inception.load(file)  # the names and shapes are right, with or without counters
    assert torch.equal(inception.fc.weight, before)
    torch.save({**state, "fc.weight": torch.zeros(1000, 2048)}, file)
    with pytest.raises(UserError, match=r"is no file of the network: fc\.weight"):
        inception.load(file)
    with pytest.raises(UserError, match="needs images with 1 or 3 channels"):
        InceptionTf(DataSpec((5,), "real"))


# ---------------------------------------------------------------------- features of data


def test_features_of_data_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, calls = digits(), []

    class Counting(Pixel):
        def features(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().features(x)

    def found(split: Any = "test", limit: int | None = None, seed: int = 0, size: int = 32) -> Tensor:
        net = Counting(data.spec, size=size)
        net.settings = {"size": size}
        return data_features(net, Chunks(data, split, seed=seed, limit=limit), tmp_path / "features")

    whole = found()
    assert sum(calls) == len(whole) == data.size("test")
    torch.testing.assert_close(whole, torch.from_numpy(data.splits["test"].x).flatten(1) / 16)
    calls.clear()
    found(seed=1)  # all examples: the seed changes nothing
    reference._memory.clear()
    assert torch.equal(found(), whole)  # from the file
    assert not calls
    for changed in ({"split": "valid"}, {"limit": 50}, {"limit": 50, "seed": 1}, {"size": 4}):
        found(**changed)
        assert calls, changed
        calls.clear()
    for file in (tmp_path / "features").iterdir():
        file.write_bytes(file.read_bytes()[:200])  # cut short: computed again
    reference._memory.clear()
    assert torch.equal(found(), whole)
    assert calls


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

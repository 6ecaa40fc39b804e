"""TensorFlow's Inception: against the published table of layers applied by hand, and how its file is found."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dgmbench.config import complete, compose
from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.errors import UserError
from dgmbench.evaluation.features import inception_tf
from dgmbench.evaluation.features.build import require_nets
from dgmbench.evaluation.features.inception_tf import FILE, InceptionTf, resize_tf1

NODE = {"name": "inception_tf", "_target_": "dgmbench.evaluation.features.inception_tf.InceptionTf"}
State = dict[str, Tensor]

# ---------------------------------------------------------------------- the published network, by hand


class Conv(NamedTuple):
    """A convolution without bias, batch normalisation with epsilon 0.001, a rectifier."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


Step = Conv | str  # "mean": 3x3, stride 1, padding not counted; "max": the same of maxima; "halve": 3x3 max, stride 2


def block_a(pooled: int) -> list[list[Step]]:
    return [
        [Conv("branch1x1", 64)],
        [Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))],
        [Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))],
        ["mean", Conv("branch_pool", pooled)],
    ]


def block_c(c: int) -> list[list[Step]]:
    double = [
        Conv("branch7x7dbl_1", c),
        Conv("branch7x7dbl_2", c, (7, 1)),
        Conv("branch7x7dbl_3", c, (1, 7)),
        Conv("branch7x7dbl_4", c, (7, 1)),
        Conv("branch7x7dbl_5", 192, (1, 7)),
    ]
    return [
        [Conv("branch1x1", 192)],
        [Conv("branch7x7_1", c), Conv("branch7x7_2", c, (1, 7)), Conv("branch7x7_3", 192, (7, 1))],
        [*double],
        ["mean", Conv("branch_pool", 192)],
    ]


def block_e(pool: str) -> list[list[Step]]:
    double: list[Step] = [Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3))]
    return [
        [Conv("branch1x1", 320)],
        [Conv("branch3x3_1", 384), Conv("branch3x3_2a", 384, (1, 3))],
        [Conv("branch3x3_1", 384), Conv("branch3x3_2b", 384, (3, 1))],
        [*double, Conv("branch3x3dbl_3a", 384, (1, 3))],
        [*double, Conv("branch3x3dbl_3b", 384, (3, 1))],
        [pool, Conv("branch_pool", 192)],
    ]


def bare(name: str, *rest: Any) -> tuple[str, list[list[Step]]]:
    return "", [[Conv(name, *rest)]]


NETWORK: list[tuple[str, list[list[Step]]]] = [
    bare("Conv2d_1a_3x3", 32, (3, 3), 2, False),
    bare("Conv2d_2a_3x3", 32, (3, 3), 1, False),
    bare("Conv2d_2b_3x3", 64, (3, 3)),
    ("", [["halve"]]),
    bare("Conv2d_3b_1x1", 80),
    bare("Conv2d_4a_3x3", 192, (3, 3), 1, False),
    ("", [["halve"]]),
    ("Mixed_5b.", block_a(32)),
    ("Mixed_5c.", block_a(64)),
    ("Mixed_5d.", block_a(64)),
    (
        "Mixed_6a.",
        [
            [Conv("branch3x3", 384, (3, 3), 2, False)],
            [
                Conv("branch3x3dbl_1", 64),
                Conv("branch3x3dbl_2", 96, (3, 3)),
                Conv("branch3x3dbl_3", 96, (3, 3), 2, False),
            ],
            ["halve"],
        ],
    ),
    ("Mixed_6b.", block_c(128)),
    ("Mixed_6c.", block_c(160)),
    ("Mixed_6d.", block_c(160)),
    ("Mixed_6e.", block_c(192)),
    (
        "Mixed_7a.",
        [
            [Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, False)],
            [
                Conv("branch7x7x3_1", 192),
                Conv("branch7x7x3_2", 192, (1, 7)),
                Conv("branch7x7x3_3", 192, (7, 1)),
                Conv("branch7x7x3_4", 192, (3, 3), 2, False),
            ],
            ["halve"],
        ],
    ),
    ("Mixed_7b.", block_e("mean")),
    ("Mixed_7c.", block_e("max")),
]


def step(x: Tensor, state: State, prefix: str, what: Step, new: torch.Generator | None) -> Tensor:
    if what == "mean":  # ones are 0 outside: their sums count the pixels inside
        ones = torch.ones_like(x[:1, :1])
        return F.avg_pool2d(x, 3, 1, 1) / F.avg_pool2d(ones, 3, 1, 1)
    if what == "max":
        return F.max_pool2d(x, 3, 1, 1)
    if what == "halve":
        return F.max_pool2d(x, 3, 2)
    assert isinstance(what, Conv)
    name, (rows, columns) = prefix + what.name, what.kernel
    if new is not None and f"{name}.conv.weight" not in state:
        shape = (what.outputs, x.shape[1], rows, columns)
        state[f"{name}.conv.weight"] = torch.randn(shape, generator=new) / (x.shape[1] * rows * columns) ** 0.5
        for key in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.bn.{key}"] = torch.rand(what.outputs, generator=new) * 0.4 + (0 if key == "bias" else 0.8)
        fresh = True
    else:
        fresh = False
    padding = (rows // 2, columns // 2) if what.padded else (0, 0)
    y = F.conv2d(x, state[f"{name}.conv.weight"], None, what.stride, padding)
    mean, variance = f"{name}.bn.running_mean", f"{name}.bn.running_var"
    if fresh:  # the statistics that training would have found, or images would all be alike after so many layers
        state[mean], state[variance] = y.mean((0, 2, 3)), y.var((0, 2, 3)) * state[variance] + 1e-3
    scale = state[f"{name}.bn.weight"] / (state[variance] + 0.001).sqrt()
    y = (y - state[mean][:, None, None]) * scale[:, None, None] + state[f"{name}.bn.bias"][:, None, None]
    return y.clamp_min(0)


def by_hand(x: Tensor, state: State, new: torch.Generator | None = None) -> Tensor:
    """Features (b, 2048) of images (b, 3, 299, 299), already scaled; weights that are missing are drawn by ``new``."""
    for prefix, branches in NETWORK:
        outputs = []
        for branch in branches:
            y = x
            for what in branch:
                y = step(y, state, prefix, what, new)
            outputs.append(y)
        x = torch.cat(outputs, 1)
    return x.flatten(2).sum(2) / 64


def tf1_matrix(new: int, old: int) -> np.ndarray:
    """The resize of a column as a matrix: corners on corners, the last value repeated."""
    matrix = np.zeros((new, old))
    for i in range(new):
        position = np.float32(i) * (np.float32(old) / np.float32(new))
        low = int(np.floor(position))
        share = float(position) - low
        matrix[i, low] += 1 - share
        matrix[i, min(low + 1, old - 1)] += share
    return matrix


def prepared_by_hand(x: np.ndarray, levels: int) -> Tensor:
    """What the network sees of raw images (b, c, h, w)."""
    eight_bits = np.floor(255 * x.astype(np.float64) / (levels - 1) + 0.5)
    colour = np.repeat(eight_bits, 3, axis=1) if x.shape[1] == 1 else eight_bits
    large = tf1_matrix(299, x.shape[2]) @ colour @ tf1_matrix(299, x.shape[3]).T
    return torch.from_numpy((large - 128) / 128).float()


def images(shape: tuple[int, int, int], levels: int, n: int, seed: int) -> np.ndarray:
    """Smooth random images with noise, dark ones and bright ones."""
    random = np.random.RandomState(seed)
    coarse = np.kron(random.rand(n, shape[0], 4, 4), np.ones((1, 1, -(-shape[1] // 4), -(-shape[2] // 4))))
    x = coarse[:, :, : shape[1], : shape[2]] * random.rand(n, 1, 1, 1) + 0.3 * random.rand(n, *shape)
    return (x / 1.3 * levels).astype(np.uint8)


@pytest.fixture(scope="module")
def weights() -> State:
    """Random weights in the layout of the published file."""
    state: State = {}
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        by_hand(prepared_by_hand(images((3, 40, 40), 256, 4, seed=0), 256), state, g)
    state["fc.weight"], state["fc.bias"] = torch.randn(1008, 2048, generator=g) / 45, torch.randn(1008, generator=g)
    return state


@pytest.fixture(scope="module")
def file(weights: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / FILE
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def data_of(x: np.ndarray, levels: int) -> DataSet:
    split = Split(x, None)
    spec = DataSpec(x.shape[1:], "discrete", levels=levels)
    return DataSet("pictures", spec, {"train": split, "valid": split, "test": split}, "1" * 64)


@pytest.mark.parametrize(("shape", "levels"), [((3, 32, 28), 256), ((1, 8, 8), 17), ((3, 310, 304), 256)])
def test_features_and_logits_are_those_of_the_published_table(
    shape: tuple[int, int, int],
    levels: int,
    weights: State,
    file: Path,
    sha256: str,
    build: Callable[..., InceptionTf],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inception_tf, "SHA256", sha256)
    x = images(shape, levels, 2, seed=1)
    net = build({**NODE, "path": str(file)}, data_of(x, levels))
    with torch.no_grad():
        expected = by_hand(prepared_by_hand(x, levels), weights)
        found = net(torch.from_numpy(x))
    typical = float((expected[0] - expected[1]).abs().mean())  # how far different images lie apart
    assert typical > 0.05
    assert float((found - expected).abs().max()) < 2e-3 * typical
    logits = net.logits(found)
    assert logits is not None
    assert float((logits - found @ weights["fc.weight"].T).abs().max()) < 1e-3


def test_the_file_has_the_published_size(weights: State) -> None:
    numbers = sum(value.numel() for value in weights.values())
    # Inception-v3 with 1000 classes and without auxiliary head has 23,834,568 weights; eight classes more are 8 * 2049
    buffers = sum(value.numel() for name, value in weights.items() if "running" in name)
    assert numbers - buffers == 23_834_568 + 8 * 2049
    # the published file has 95,628,359 bytes, some 100 kB of them names and headers
    assert 0 < 95_628_359 - 4 * numbers < 200_000


# ---------------------------------------------------------------------- the resize


def tf1_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The rule in loops over output pixels: corners on corners, the last row and column repeated."""
    rows, columns = image.shape
    result = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            y = np.float32(i) * (np.float32(rows) / np.float32(height))
            x = np.float32(j) * (np.float32(columns) / np.float32(width))
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


# ---------------------------------------------------------------------- the file: where it is looked for, what it is


@pytest.fixture
def pictures() -> DataSet:
    return data_of(images((3, 8, 8), 256, 4, seed=0), 256)


def test_a_path_is_no_part_of_what_the_net_is(
    file: Path,
    sha256: str,
    pictures: DataSet,
    build: Callable[..., InceptionTf],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inception_tf, "SHA256", sha256)
    (tmp_path / "elsewhere.pth").symlink_to(file)
    state = torch.get_rng_state()
    by_path = build({**NODE, "path": str(tmp_path / "elsewhere.pth")}, pictures)
    by_folder = build("inception_tf", pictures, file.parent)
    assert torch.equal(torch.get_rng_state(), state)
    assert by_path.hash == by_folder.hash
    assert by_path.record()["net_settings"] == {}
    assert [by_path.label(m) for m in ("fd", "score", "kid")] == ["fid", "inception_score", "kid_inception_tf"]
    assert by_path.label("fd", "train") == "fid_train"
    second = build(
        {**NODE, "name": "copy", "path": str(file)}, pictures
    )  # two nets must not share their numbers' names
    assert second.label("fd") == "fd_copy"


def test_what_is_missing_and_what_to_do_about_it(pictures: DataSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"needs the weights {FILE}, and {tmp_path}/{FILE} does not exist") as error:
        require_nets(["inception_tf"], pictures, tmp_path)
    assert "path:FILE" in str(error.value)
    assert "download:true" in str(error.value)
    for allowed in (False, True):  # a download goes to the data folder and would not help
        with pytest.raises(UserError, match=r"There is no file .*/mine\.pth, which features\.path of") as error:
            require_nets([{**NODE, "path": str(tmp_path / "mine.pth"), "download": allowed}], pictures, tmp_path)
        assert "download:true" not in str(error.value)
    with pytest.raises(UserError, match=r"name the file by features\.path=FILE"):
        require_nets([{**NODE, "download": True}], pictures, None)


def test_the_advice_is_a_command_that_works(pictures: DataSet, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        require_nets(["inception_tf"], pictures, tmp_path)
    node = str(error.value).partition("write ")[2].partition(" instead")[0].replace("FILE", "/a/file.pth")
    quality = complete(compose("train", ["model=vae", f"protocol.quality.features=[{node}]"]))["protocol"]["quality"]
    assert quality["features"] == [{**NODE, "path": "/a/file.pth", "download": False}]


def test_weights_must_be_the_published_ones(
    weights: State, pictures: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match="not the published sha256:6726825d"):
        require_nets(["inception_tf"], pictures, tmp_path)
    net = InceptionTf(pictures.spec)
    with pytest.raises(UserError, match=r"no file of weights that PyTorch can read "):
        net.load(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match=r"no file of weights that PyTorch can read \(AttributeError\)"):
        net.load(path)
    torch.save({**weights, "fc.weight": torch.zeros(1000, 2048)}, path)
    with pytest.raises(UserError, match=r"is no file of the network: fc\.weight"):
        net.load(path)
    torch.save({name: value for name, value in weights.items() if name != "fc.bias"}, path)
    with pytest.raises(UserError, match=r"is no file of the network: fc\.bias \(1008,\) does not agree"):
        net.load(path)


def test_images_it_cannot_see_are_refused() -> None:
    with pytest.raises(UserError, match="needs images with 1 or 3 channels"):
        InceptionTf(DataSpec((5,), "real"))
    for kind in ("real", "counts"):
        with pytest.raises(UserError, match=rf"least and greatest value are known.* not {kind} 3x8x8; use random_conv"):
            InceptionTf(DataSpec((3, 8, 8), kind))


# ---------------------------------------------------------------------- the download, from a server on this machine


def test_a_download_gives_the_net_and_happens_once(
    served: tuple[Path, str],
    file: Path,
    sha256: str,
    pictures: DataSet,
    build: Callable[..., InceptionTf],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, address = served
    (folder / FILE).symlink_to(file)
    monkeypatch.setattr(inception_tf, "SHA256", sha256)
    monkeypatch.setattr(inception_tf, "URL", f"{address}/{FILE}")
    features = tmp_path / "data" / "features"
    require_nets([{**NODE, "download": True}], pictures, features)
    assert [path.name for path in features.iterdir()] == [FILE]
    (folder / FILE).unlink()
    net = build({**NODE, "download": True}, pictures, features)
    assert net.hash == build({**NODE, "path": str(file)}, pictures).hash


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        (
            "wrong",
            r"The download of http://127\.0\.0\.1:\d+/wrong does not have the published sha256:6726825d.*; retry",
        ),
        ("missing", r"http://127\.0\.0\.1:\d+/missing cannot be fetched .*404.* get pt_inception.* by other means"),
        ("broken", r"http://127\.0\.0\.1:\d+/broken cannot be fetched .* get pt_inception.* by other means"),
        ("nobody", r"http://127\.0\.0\.1:1/nobody cannot be fetched .* get pt_inception.* by other means"),
    ],
)
def test_a_download_that_fails_leaves_nothing(
    what: str,
    sentence: str,
    served: tuple[Path, str],
    pictures: DataSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, address = served
    (folder / "wrong").write_bytes(b"another file")
    monkeypatch.setattr(inception_tf, "URL", f"{'http://127.0.0.1:1' if what == 'nobody' else address}/{what}")
    features = tmp_path / "features"
    with pytest.raises(UserError, match=sentence):
        require_nets([{**NODE, "download": True}], pictures, features)
    assert list(features.iterdir()) == []

r"""Inception-v3 with the weights that FID and the Inception score were defined by, and their resize.

The network of 5 December 2015 (Szegedy et al. 2016; 1008 outputs) as ported to PyTorch. It is not the Inception-v3 of
torchvision: its average pools leave the padding out of the mean, the last block pools by maximum, the filters are
others. Images are resized to 299 x 299 by TensorFlow 1's bilinear rule, which puts the corner of the output pixel, not
its centre, on the grid of the input, and does not smooth when it shrinks:

    position = i * (size / 299),  low = floor(position),  high = min(low + 1, size - 1),  no half pixel added,

and scaled by (x - 128) / 128 with x in 0 ... 255. Features are the 2048 means before the classifier; the Inception
score takes the logits without their bias, as the original did.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.config.targets import dotted
from dgmbench.data import DataSet, DataSpec
from dgmbench.data.files import PublishedFile, checksum, download
from dgmbench.errors import UserError
from dgmbench.evaluation.features.net import FeatureNet, Note

NAME = "inception_tf"
SIDE = 299
FILE = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
BATCH = 50  # images at a time: 299 x 299 takes some 30 MiB each


def resize_tf1(x: Tensor, height: int, width: int) -> Tensor:
    """TensorFlow 1's ``resize_bilinear`` with ``align_corners=False`` of images x (n, c, h, w), in float32."""
    rows, columns = (_grid(new, old, x.device) for new, old in ((height, x.shape[2]), (width, x.shape[3])))
    low, high, share = columns
    top, bottom, down = rows
    left, right = x[..., low], x[..., high]
    across = left + (right - left) * share
    upper, lower = across[:, :, top], across[:, :, bottom]
    return upper + (lower - upper) * down[:, None]


def _grid(new: int, old: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each output position the two input positions and the share of the second, in float32 as TensorFlow does."""
    position = torch.arange(new, dtype=torch.float32, device=device) * (torch.tensor(float(old)) / float(new)).to(
        device
    )
    low = position.floor().long()
    return low, (low + 1).clamp_max(old - 1), position - low


class ConvBn(nn.Module):
    """Convolution without bias, batch normalisation, rectifier."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, *, same: bool = True
    ) -> None:
        super().__init__()
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (size[0] // 2, size[1] // 2) if same and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """The rectified, normalised convolution."""
        return F.relu(self.bn(self.conv(x)))


def _mean_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class MixedA(nn.Module):
    """35 x 35: 1x1, 5x5, double 3x3 and pooling."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = ConvBn(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = ConvBn(inputs, 48, 1), ConvBn(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvBn(inputs, 64, 1), ConvBn(64, 96, 3)
        self.branch3x3dbl_3 = ConvBn(96, 96, 3)
        self.branch_pool = ConvBn(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """All branches side by side."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat(
            [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_mean_pool(x))], 1
        )


class MixedB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = ConvBn(inputs, 384, 3, 2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvBn(inputs, 64, 1), ConvBn(64, 96, 3)
        self.branch3x3dbl_3 = ConvBn(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """All branches side by side."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class MixedC(nn.Module):
    """17 x 17: 7x7 in two pieces."""

    def __init__(self, inputs: int, middle: int) -> None:
        super().__init__()
        self.branch1x1 = ConvBn(inputs, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = ConvBn(inputs, middle, 1), ConvBn(middle, middle, (1, 7))
        self.branch7x7_3 = ConvBn(middle, 192, (7, 1))
        self.branch7x7dbl_1, self.branch7x7dbl_2 = ConvBn(inputs, middle, 1), ConvBn(middle, middle, (7, 1))
        self.branch7x7dbl_3, self.branch7x7dbl_4 = ConvBn(middle, middle, (1, 7)), ConvBn(middle, middle, (7, 1))
        self.branch7x7dbl_5 = ConvBn(middle, 192, (1, 7))
        self.branch_pool = ConvBn(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """All branches side by side."""
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_mean_pool(x))], 1)


class MixedD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = ConvBn(inputs, 192, 1), ConvBn(192, 320, 3, 2)
        self.branch7x7x3_1, self.branch7x7x3_2 = ConvBn(inputs, 192, 1), ConvBn(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = ConvBn(192, 192, (7, 1)), ConvBn(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """All branches side by side."""
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, 2)], 1)


class MixedE(nn.Module):
    """8 x 8: wide branches; the second of the two pools by maximum."""

    def __init__(self, inputs: int, *, max_pool: bool) -> None:
        super().__init__()
        self.max_pool = max_pool
        self.branch1x1 = ConvBn(inputs, 320, 1)
        self.branch3x3_1 = ConvBn(inputs, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = ConvBn(384, 384, (1, 3)), ConvBn(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvBn(inputs, 448, 1), ConvBn(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = ConvBn(384, 384, (1, 3)), ConvBn(384, 384, (3, 1))
        self.branch_pool = ConvBn(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """All branches side by side."""
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.max_pool else _mean_pool(x)
        wide = [self.branch3x3_2a(single), self.branch3x3_2b(single)]
        wide += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *wide, self.branch_pool(pooled)], 1)


class InceptionTf(FeatureNet):
    """2048 features of images with 1 or 3 channels.

    ``path`` is the file of weights, by default in the data folder's ``features/``, where ``download`` may fetch it.
    """

    NO_CONTENT = ("path", "download")  # the checksum says what the weights are

    def __init__(self, spec: DataSpec, *, path: str | None = None, download: bool = False) -> None:
        super().__init__(spec)
        if not spec.is_image or spec.shape[0] not in (1, 3):
            raise UserError(f"features=inception_tf needs images with 1 or 3 channels, not {spec}; use random_conv.")
        if not self.scaling.bounded:
            raise UserError(
                f"features=inception_tf needs images whose least and greatest value are known, to become 0 and 255, "
                f"not {spec}; use random_conv."
            )
        self.path, self.download = path, download
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = ConvBn(3, 32, 3, 2), ConvBn(32, 32, 3, same=False)
        self.Conv2d_2b_3x3, self.Conv2d_3b_1x1 = ConvBn(32, 64, 3), ConvBn(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvBn(80, 192, 3, same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = MixedA(192, 32), MixedA(256, 64), MixedA(288, 64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b, self.Mixed_6c = MixedC(768, 128), MixedC(768, 160)
        self.Mixed_6d, self.Mixed_6e = MixedC(768, 160), MixedC(768, 192)
        self.Mixed_7a = MixedD(768)
        self.Mixed_7b, self.Mixed_7c = MixedE(1280, max_pool=False), MixedE(2048, max_pool=True)
        self.fc = nn.Linear(2048, 1008)
        self.eval()

    def label(self, measure: str, variant: str = "") -> str:
        """Its Frechet distance is *the* FID, its score *the* Inception score."""
        if self.name != NAME:  # a second copy, or a class derived from this one
            return super().label(measure, variant)
        if measure == "score":
            return "inception_score"
        return f"fid{variant and '_'}{variant}" if measure == "fd" else super().label(measure, variant)

    def require(self, data: DataSet, folder: Path | None) -> None:
        """Find the file, or fetch it."""
        self._file(folder)

    def prepare(self, data: DataSet, folder: Path | None, note: Note) -> None:
        """Load the file."""
        self.load(self._file(folder))

    def _file(self, folder: Path | None) -> Path:
        """Where the file is, its checksum compared."""
        published = PublishedFile(FILE, f"sha256:{SHA256}", URL)
        if self.path:
            path = Path(self.path).expanduser()
            if not path.is_file():
                raise UserError(
                    f"There is no file {path}, which features.path of inception_tf names; it must be {FILE}, to be had "
                    f"from {URL}."
                )
        elif folder is None:
            raise UserError(f"features=inception_tf needs the weights {FILE}; name the file by features.path=FILE.")
        else:
            path = folder / FILE
            if not path.is_file() and self.download:
                download(published, folder)
            if not path.is_file():
                raise UserError(
                    f"features=inception_tf needs the weights {FILE}, and {path} does not exist. Put the file there, "
                    f"or write {{name:{NAME},_target_:{dotted(InceptionTf)},path:FILE}} instead of {NAME} to name it "
                    f"elsewhere, or download:true instead of path:FILE to fetch it from {URL}."
                )
        try:
            found = checksum(path, "sha256")
        except OSError as error:
            raise UserError(f"The weights {path} cannot be read ({error.strerror or error}).") from error
        if found != published.checksum:
            raise UserError(
                f"{path} has {found}, not the published {published.checksum}; its distance would be no FID. Delete it "
                f"and get it again from {URL}."
            )
        return path

    def load(self, path: Path) -> None:
        """Load a file of weights whose names and shapes are this network's."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            given = {name: tuple(value.shape) for name, value in state.items()}
        except Exception as error:  # PyTorch raises what it likes for a file that it did not write
            raise UserError(f"{path} is no file of weights that PyTorch can read ({type(error).__name__}).") from error
        wanted = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        counted = {name for name in wanted if name.endswith("num_batches_tracked")}  # not in every copy
        wrong = {item for item in given.items() ^ wanted.items() if item[0] not in counted}
        if wrong:
            name, shape = min(wrong)
            raise UserError(f"{path} is no file of the network: {name} {shape} does not agree.")
        self.load_state_dict({**{name: torch.tensor(0) for name in counted}, **state})

    def features(self, x: Tensor) -> Tensor:
        """The means of the last block, (b, 2048), of values in [0, 1]."""
        return torch.cat([self._features(part) for part in x.split(BATCH)])

    def _features(self, x: Tensor) -> Tensor:
        levels = (255 * x).round().clamp(0, 255)
        x = resize_tf1(levels.expand(-1, 3, -1, -1), SIDE, SIDE)
        x = (x - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """The 1008 logits without their bias."""
        return F.linear(features.to(self.fc.weight.dtype), self.fc.weight)

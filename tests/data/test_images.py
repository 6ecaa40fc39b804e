from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dgmbench.data import DataSet, DataSpec, load
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]
Open = Callable[..., DataSet]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


@pytest.fixture
def open_folder(config: Config, tmp_path: Path, pictures: Path) -> Open:
    return lambda **options: load(config("images", path=str(pictures), **{"size": 8, **options}), tmp_path / "root")


def put(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def put_many(folder: Path, count: int, *, first: int = 0) -> None:
    for i in range(first, first + count):
        put(folder / f"{i:03}.png", (i, 0, 0))


def reds(data: DataSet, split: str) -> list[int]:
    return data.splits[split].x[:, 0, 0, 0].tolist()


def test_a_plain_folder_is_split_by_seed(open_folder: Open, pictures: Path) -> None:
    put_many(pictures, 20)
    data = open_folder()
    assert data.spec == DataSpec((3, 8, 8), "discrete", levels=256)
    assert {s: len(p) for s, p in data.splits.items()} == {"train": 16, "valid": 2, "test": 2}
    assert sorted(red for split in data.splits for red in reds(data, split)) == list(range(20))
    assert all(part.y is None for part in data.splits.values())
    assert data.meta["split_hash"] == open_folder().meta["split_hash"] != open_folder(split_seed=1).meta["split_hash"]


def test_split_folders_are_recognised(open_folder: Open, pictures: Path) -> None:
    for folder, first in (("train", 0), ("val", 10), ("test", 20)):
        put_many(pictures / folder, 4, first=first)
    data = open_folder()
    assert reds(data, "train") == [0, 1, 2, 3]
    assert reds(data, "valid") == [10, 11, 12, 13]
    assert reds(data, "test") == [20, 21, 22, 23]


def test_a_missing_split_folder_is_dealt_from_the_training_pictures(open_folder: Open, pictures: Path) -> None:
    put_many(pictures / "train", 20)
    put_many(pictures / "test", 3, first=50)
    data = open_folder()
    assert len(data.splits["valid"]) == 2
    assert sorted(reds(data, "train") + reds(data, "valid")) == list(range(20))
    assert reds(data, "test") == [50, 51, 52]


@pytest.mark.parametrize("splits", [("",), ("train/", "valid/", "test/")])
def test_class_folders_are_labels(open_folder: Open, pictures: Path, splits: tuple[str, ...]) -> None:
    for split in splits:
        put_many(pictures / f"{split}dogs", 10, first=100)
        put_many(pictures / f"{split}cats", 10)
    data = open_folder()
    assert data.spec.num_classes == 2
    assert data.meta["remarks"]["classes"] == ["cats", "dogs"]
    for name, part in data.splits.items():
        assert np.array_equal(part.y, np.array(reds(data, name)) >= 100)


def test_one_picture_outside_the_class_folders_means_no_labels(open_folder: Open, pictures: Path) -> None:
    put_many(pictures / "cats", 20)
    put_many(pictures, 1, first=99)
    assert open_folder().spec.num_classes is None


def test_different_sizes_are_cropped_to_the_centre_and_resized(open_folder: Open, pictures: Path) -> None:
    for i, (width, height) in enumerate([(30, 10), (10, 50), (8, 8), (64, 64)] * 5):
        image = np.zeros((height, width, 3), np.uint8)
        image[..., 1] = 255  # the margins are green, the central square is blue
        side = min(width, height)
        top, left = (height - side) // 2, (width - side) // 2
        image[top : top + side, left : left + side] = (0, 0, 200)
        pictures.mkdir(exist_ok=True)
        Image.fromarray(image).save(pictures / f"{i}.png")
    data = open_folder(size=16)
    for part in data.splits.values():
        assert part.x.shape[1:] == (3, 16, 16)
        assert np.all(part.x == np.array([0, 0, 200])[:, None, None])


def test_grey_pictures_and_binarisation(open_folder: Open, pictures: Path) -> None:
    for i in range(20):
        put(pictures / f"{i}.png", (12 * i, 12 * i, 12 * i))
    grey = open_folder(channels=1)
    assert grey.spec == DataSpec((1, 8, 8), "discrete", levels=256)
    assert reds(open_folder(channels=1, binarise="threshold"), "train") == [v >= 128 for v in reds(grey, "train")]


def test_formats_modes_and_rotation(open_folder: Open, pictures: Path) -> None:
    pictures.mkdir()
    kinds = {"png": "L", "gif": "P", "webp": "RGBA", "jpg": "CMYK", "bmp": "1"}
    for i, (suffix, mode) in enumerate(kinds.items()):
        Image.new(mode, (8, 8)).save(pictures / f"{i}.{suffix}")
    rotated = Image.new("RGB", (8, 8))
    rotated.paste((255, 255, 255), (0, 0, 8, 4))  # upper half white, and a mark that says: turn by 180 degrees
    exif = Image.Exif()
    exif[0x0112] = 3
    rotated.save(pictures / "rotated.png", exif=exif)
    data = open_folder(valid=2, test=2)
    everything = np.concatenate([part.x for part in data.splits.values()])
    assert len(everything) == 6
    (turned,) = everything[np.ptp(everything, axis=(1, 2, 3)) == 255]
    assert turned[0, 0, 0] == 0
    assert turned[0, 7, 0] == 255


def test_hidden_and_other_files_are_passed_over(open_folder: Open, pictures: Path) -> None:
    put_many(pictures, 20)
    put_many(pictures / ".thumbnails", 5, first=100)
    (pictures / "notes.txt").write_text("not a picture")
    assert sum(len(part) for part in open_folder().splits.values()) == 20


def test_a_new_picture_prepares_the_folder_again(open_folder: Open, pictures: Path) -> None:
    put_many(pictures, 20)
    before = open_folder().content_hash
    put_many(pictures, 1, first=20)
    data = open_folder()
    assert sum(len(part) for part in data.splits.values()) == 21
    assert data.content_hash != before


def test_empty_missing_or_too_small_folders(open_folder: Open, pictures: Path, config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no folder .*pictures"):
        open_folder()
    pictures.mkdir()
    with pytest.raises(UserError, match=r"pictures holds no pictures \(.*\.png"):
        open_folder()
    put_many(pictures, 2)
    with pytest.raises(UserError, match=r"no valid folder, and data\.valid=0\.1 of 2 training pictures holds out none"):
        open_folder()
    with pytest.raises(UserError, match=r"needs data\.path=DIR"):
        load(config("images"), tmp_path)


def test_an_unreadable_picture_is_named(open_folder: Open, pictures: Path) -> None:
    put_many(pictures, 20)
    noise = np.random.RandomState(0).randint(256, size=(64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(pictures / "007.png")
    whole = (pictures / "007.png").read_bytes()
    for content, reason in ((b"no picture", "no known picture format"), (whole[:5000], "truncated|broken|incomplete")):
        (pictures / "007.png").write_bytes(content)
        with pytest.raises(UserError, match=rf"The picture 007\.png cannot be decoded \(.*({reason})"):
            open_folder()
    (pictures / "007.png").write_bytes(whole)
    assert len(open_folder().splits["train"]) == 16


@pytest.mark.parametrize(("options", "value"), [({"size": 0}, 0), ({"channels": 2}, 2)])
def test_impossible_sizes(open_folder: Open, pictures: Path, options: dict[str, Any], value: float) -> None:
    put_many(pictures, 20)
    with pytest.raises(UserError, match=f"is {value}; "):
        open_folder(**options)

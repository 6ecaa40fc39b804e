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


def test_the_first_folder_is_the_class_however_deep_the_picture_lies(open_folder: Open, pictures: Path) -> None:
    put_many(pictures / "cats" / "session1", 10)
    put_many(pictures / "cats", 2, first=10)
    put_many(pictures / "dogs" / "session1" / "monday", 10, first=100)
    data = open_folder()
    assert data.spec.class_names == ("cats", "dogs")
    for name, part in data.splits.items():
        assert np.array_equal(part.y, np.array(reds(data, name)) >= 100)


def test_pictures_beside_class_folders_are_refused_and_can_be_taken_without_labels(
    open_folder: Open, pictures: Path
) -> None:
    put_many(pictures / "cats", 20)
    put_many(pictures, 1, first=99)
    with pytest.raises(UserError, match=r"1 picture \(099\.png\) beside its 1 class folder \(cats\).*labels=none"):
        open_folder()
    data = open_folder(labels="none")
    assert data.spec.num_classes is None
    assert sum(len(part) for part in data.splits.values()) == 21


def test_links_are_followed_but_not_round_in_circles(open_folder: Open, pictures: Path, tmp_path: Path) -> None:
    put_many(pictures / "cats", 10)
    put_many(tmp_path / "elsewhere" / "deep", 10, first=100)
    (pictures / "dogs").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(pictures)
    (pictures / "cats" / "gone.png").symlink_to(tmp_path / "nothing.png")
    data = open_folder()
    assert data.spec.class_names == ("cats", "dogs")
    assert sorted(red for split in data.splits for red in reds(data, split)) == [*range(10), *range(100, 110)]
    assert data.meta["notes"] == [
        "passed over as links into a folder that they lie in: 1 name (dogs/up)",
        "passed over as no files (pipes, devices, links to nothing): 1 name (cats/gone.png)",
    ]


def test_what_is_passed_over_is_named(open_folder: Open, pictures: Path) -> None:
    put_many(pictures / "train", 20)
    put_many(pictures / "extra", 5)
    put_many(pictures / ".thumbnails", 2)
    (pictures / "notes.txt").write_text("not a picture")
    notes = [
        "passed over as outside of the folders train, valid and test: "
        "5 pictures (extra/000.png, extra/001.png, extra/002.png, ...)",
        "passed over as hidden: 1 name (.thumbnails)",
        "passed over as no pictures by their ending: 1 file (notes.txt)",
    ]
    assert open_folder().meta["notes"] == notes
    assert open_folder().meta["notes"] == notes, "a set that was prepared before says it as well"


def column(values: list[float], dtype: str) -> Image.Image:
    """A square picture of one value a row."""
    return Image.fromarray(np.array(values, dtype)[:, None].repeat(len(values), 1))


def read_one(open_folder: Open, pictures: Path, picture: Image.Image, name: str, **options: Any) -> list[int]:
    pictures.mkdir(exist_ok=True)
    for i in range(5):
        picture.save(pictures / f"{i}{name}")
    x = open_folder(size=5, channels=1, valid=2, test=2, **options).splits["train"].x[0, 0]
    assert (x == x[:, :1]).all()
    return x[:, 0].tolist()


@pytest.mark.parametrize("name", [".png", ".tif", ".pgm"])
def test_sixteen_bits_keep_their_ramp(open_folder: Open, pictures: Path, name: str) -> None:
    ramp = [0, 17219, 34000, 50629, 65535]  # in 8 bits 0, 67, 132.3, 197, 255
    assert read_one(open_folder, pictures, column(ramp, "uint16"), name) == [0, 67, 132, 197, 255]


@pytest.mark.parametrize(
    ("dtype", "scale", "limits"),
    [("float32", 1.0, [0, 1]), ("int32", 100_000, [0, 100_000]), ("uint16", 4095, [0, 4095])],
)
def test_values_of_no_known_range_need_one(
    open_folder: Open, pictures: Path, dtype: str, scale: float, limits: list[float]
) -> None:
    picture = column([scale * share for share in (0, 0.2, 0.4, 0.8, 1)], dtype)
    if dtype != "uint16":
        with pytest.raises(UserError, match=rf"\d\.tif holds .* from 0 to {scale:g}, .*value_range=\[black,white\]"):
            read_one(open_folder, pictures, picture, ".tif")
    assert read_one(open_folder, pictures, picture, ".tif", value_range=limits) == [0, 51, 102, 204, 255]
    with pytest.raises(UserError, match=r"\d\.tif holds .* beyond data\.value_range=\[0,0\.5\]"):
        read_one(open_folder, pictures, picture, ".tif", value_range=[0, 0.5])


def test_floats_that_are_not_finite_are_damage(open_folder: Open, pictures: Path) -> None:
    with pytest.raises(UserError, match=r"5 pictures .* 0\.tif \(it holds values that are not finite\)"):
        read_one(open_folder, pictures, column([0, 1, 0, np.nan, 1], "float32"), ".tif", value_range=[0, 1])


def transparent(mode: str) -> Image.Image:
    """A picture whose left half is opaque red (grey 200) and whose right half is green (grey 90) that nobody sees."""
    colours = {"RGBA": ((200, 0, 0, 255), (0, 200, 0, 0)), "LA": ((200, 255), (90, 0))}[mode]
    image = Image.new(mode, (8, 8), colours[0])
    image.paste(colours[1], (4, 0, 8, 8))
    return image


@pytest.mark.parametrize(("background", "ground"), [("white", (255, 255, 255)), ("#102030", (16, 32, 48))])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_colours_under_transparency_are_not_seen(
    open_folder: Open, pictures: Path, mode: str, background: str, ground: tuple[int, int, int]
) -> None:
    pictures.mkdir()
    for i in range(5):
        if mode == "P":
            picture = Image.new("P", (8, 8), 0)
            picture.putpalette([200, 0, 0, 0, 200, 0])
            picture.paste(1, (4, 0, 8, 8))
            picture.save(pictures / f"{i}.png", transparency=1)
        else:
            transparent(mode).save(pictures / f"{i}.png")
    data = open_folder(valid=2, test=2, background=background)
    x = data.splits["train"].x[0]
    assert np.array_equal(x[:, 0, 0], [200, 200, 200] if mode == "LA" else [200, 0, 0])
    assert np.array_equal(x[:, 0, 7], ground)
    assert data.meta["notes"] == [
        f"5 pictures (0.png, 1.png, 2.png, ...) have transparent parts, which were laid on data.background={background}"
    ]


def test_a_transparent_value_of_sixteen_bits(open_folder: Open, pictures: Path) -> None:
    pictures.mkdir()
    for i in range(5):
        column([0, 1000, 2000, 65535, 0], "uint16").save(pictures / f"{i}.png", transparency=1000)
    x = open_folder(size=5, channels=1, valid=2, test=2).splits["train"].x[0, 0, :, 0]
    assert x.tolist() == [0, 255, 8, 255, 0]


def test_half_transparent_colours_are_mixed(open_folder: Open, pictures: Path) -> None:
    pictures.mkdir()
    for i in range(5):
        Image.new("RGBA", (8, 8), (100, 0, 0, 51)).save(pictures / f"{i}.png")  # a fifth of red, four of the ground
    x = open_folder(valid=2, test=2, background="black").splits["train"].x[0, :, 0, 0]
    assert x.tolist() == [20, 0, 0]


def test_only_the_first_page_of_several_is_taken_and_said(open_folder: Open, pictures: Path) -> None:
    pictures.mkdir()
    for i in range(5):
        pages = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (10 * i, 250)]
        pages[0].save(pictures / f"{i}.tif", save_all=True, append_images=pages[1:])
    data = open_folder(valid=2, test=2)
    assert sorted(red for split in data.splits for red in reds(data, split)) == [0, 10, 20, 30, 40]
    assert data.meta["notes"] == [
        "5 pictures (0.tif, 1.tif, 2.tif, ...) have several pages or frames, of which the first was taken"
    ]


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


def test_a_single_picture_trains_validates_and_tests_alike_and_says_so(
    open_folder: Open, pictures: Path, config: Config, tmp_path: Path
) -> None:
    put_many(pictures, 1, first=7)
    for data in (open_folder(), load(config("images", path=str(pictures / "007.png"), size=8), tmp_path / "root")):
        assert [reds(data, split) for split in ("train", "valid", "test")] == [[7]] * 3
        assert any("trains, validates and tests alike" in note for note in data.meta["notes"])
    put_many(pictures, 20)
    named = load(config("images", path=str(pictures / "011.png"), size=[4, 6]), tmp_path / "root")
    assert named.splits["train"].x.shape == (1, 3, 4, 6)
    assert reds(named, "test") == [11], "the others in its folder are none of this set"
    assert not any("alike" in note for note in open_folder().meta["notes"])
    (pictures / "notes.txt").write_text("not a picture")
    with pytest.raises(UserError, match=r"notes\.txt is no picture \("):
        load(config("images", path=str(pictures / "notes.txt")), tmp_path / "root")


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


def test_damaged_pictures_are_all_named_at_once_or_left_out(open_folder: Open, pictures: Path) -> None:
    put_many(pictures / "train" / "cats", 300)
    put_many(pictures / "test" / "cats", 4)
    bad = ["test/cats/002.png", "train/cats/007.png", "train/cats/299.png"]
    for name in bad:
        (pictures / name).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"3 pictures cannot be decoded: .*skip_damaged=true") as raised:
        open_folder()
    assert all(f"{name} (no known picture format)" in str(raised.value) for name in bad)
    data = open_folder(skip_damaged=True)
    assert data.meta["remarks"]["skipped"] == dict.fromkeys(bad, "no known picture format")
    assert sum(len(part) for part in data.splits.values()) == 301
    (note,) = data.meta["notes"]
    assert note.startswith("passed over as damaged: 3 pictures (")
    assert all(name in note for name in bad)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"background": "whitish"}, r"data\.background=whitish is no colour"),
        ({"value_range": [1, 1]}, r"data\.value_range=\[1\.0, 1\.0\] must be two numbers \[black, white\]"),
        ({"value_range": [1]}, r"data\.value_range=\[1\] must be"),
        ({"labels": "folder"}, r"data\.labels=folder must be one of folders, none; did you mean folders"),
    ],
)
def test_wrong_options(open_folder: Open, pictures: Path, options: dict[str, Any], words: str) -> None:
    put_many(pictures, 20)
    with pytest.raises(UserError, match=words):
        open_folder(**options)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"size": 0}, "0"),
        ({"size": [8, 0]}, r"\[8, 0\]"),
        ({"size": [8, 8, 8]}, r"\[8, 8, 8\]"),
        ({"size": []}, r"\[\]"),
        ({"channels": 2}, "2"),
    ],
)
def test_impossible_sizes(open_folder: Open, pictures: Path, options: dict[str, Any], value: str) -> None:
    put_many(pictures, 20)
    with pytest.raises(UserError, match=f"is {value}; "):
        open_folder(**options)


@pytest.mark.parametrize(("height", "width"), [(4, 12), (12, 4), (8, 8)])
def test_a_size_of_two_sides_takes_the_largest_centre_of_that_form(
    open_folder: Open, pictures: Path, height: int, width: int
) -> None:
    """Of 24x24 pixels whose centre of that form is red, all that is left is red; a pixel more would be blue."""
    tall, wide = (24 * height // max(height, width), 24 * width // max(height, width))
    pixels = np.full((24, 24, 3), (0, 0, 255), np.uint8)
    top, left = (24 - tall) // 2, (24 - wide) // 2
    pixels[top : top + tall, left : left + wide] = (255, 0, 0)
    pictures.mkdir(exist_ok=True)
    for n in range(20):
        Image.fromarray(pixels).save(pictures / f"{n}.png")
    data = open_folder(size=[height, width])
    assert data.spec.shape == (3, height, width)
    x = data.splits["train"].x
    assert (x[:, 0] == 255).all()
    assert (x[:, 2] == 0).all()

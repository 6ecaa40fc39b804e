from collections.abc import Callable
from typing import Any

import pytest

from dgmbench.data import DataSpec, check_pair, spec_from_card
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]
BINARY, GREY = DataSpec((1, 8, 8), "binary"), DataSpec((1, 8, 8), "discrete", levels=17)
COLOUR, PLANE = DataSpec((3, 32, 32), "discrete", levels=256), DataSpec((2,), "real")


def message(card: dict[str, Any], spec: DataSpec, data: str) -> str:
    with pytest.raises(UserError) as caught:
        check_pair(card, spec, data, "m")
    text = str(caught.value)
    assert text.count(". ") == 0
    assert text.endswith(".")
    return text


def test_fitting_pairs_pass() -> None:
    check_pair({"kinds": ["binary"]}, BINARY, "digits_binary", "rbm")
    check_pair({"kinds": ["binary", "discrete", "real"]}, PLANE, "toy2d", "vae")
    check_pair({"kinds": ["discrete"], "image": True, "sizes": [28, 32]}, COLOUR, "cifar10", "dcgan")
    check_pair({}, PLANE, "toy2d", "anything")


def test_a_binary_model_on_grey_levels_is_told_to_binarise() -> None:
    text = message({"kinds": ["binary"]}, GREY, "digits")
    assert "model=m takes binary data, but data=digits is discrete 1x8x8, 17 levels" in text
    assert "data.binarise=threshold" in text
    assert "data=digits_binary" in text


def test_colour_and_real_data_are_not_told_to_binarise() -> None:
    for spec in (COLOUR, PLANE):
        text = message({"kinds": ["binary"]}, spec, "cifar10")
        assert "binarise" not in text
        assert "data=digits_binary" in text


def test_other_kinds_name_embedded_sets_of_theirs() -> None:
    assert "data=toy2d or tabular" in message({"kinds": ["real"]}, BINARY, "digits_binary")
    assert "data=digits or digits32" in message({"kinds": ["discrete"]}, PLANE, "toy2d")
    assert "data=text_small" in message({"kinds": ["tokens"]}, PLANE, "toy2d")
    assert "data=topics" in message({"kinds": ["counts"]}, PLANE, "toy2d")


def test_the_models_own_data_come_first() -> None:
    text = message({"kinds": ["discrete"], "data": "audio_small"}, PLANE, "toy2d")
    assert "data=audio_small, digits or digits32" in text


def test_waveforms_are_not_binarised() -> None:
    audio = DataSpec((256,), "discrete", levels=256, sampling_rate=4000)
    text = message({"kinds": ["binary"]}, audio, "audio_small")
    assert "data=audio_small is discrete 256, 256 levels" in text
    assert "binarise" not in text


def test_images_and_their_sizes() -> None:
    assert "takes images (c, h, w)" in message({"kinds": ["real", "binary"], "image": True}, PLANE, "toy2d")
    assert "choose data=digits32" in message({"sizes": [28, 32, 64]}, GREY, "digits")
    assert "sides of 64, but data=cifar10 is 32x32" in message({"sizes": [64]}, COLOUR, "cifar10")
    assert "is 28x20" in message({"sizes": [28]}, DataSpec((1, 28, 20), "discrete", levels=256), "npz")


def test_cards_tell_the_spec_before_loading(config: Config) -> None:
    assert spec_from_card(config("mnist")) == DataSpec((1, 28, 28), "discrete", levels=256, num_classes=10)
    assert spec_from_card(config("mnist", binarise="dynamic")) == DataSpec((1, 28, 28), "binary", num_classes=10)
    assert spec_from_card(config("binarized_mnist")) == DataSpec((1, 28, 28), "binary", num_classes=0)  # none, for sure
    assert spec_from_card(config("celeba", size=128)) == DataSpec((3, 128, 128), "discrete", levels=256)
    assert spec_from_card(config("images", size=16, channels=1)) == DataSpec((1, 16, 16), "discrete", levels=256)
    assert spec_from_card(config("images", channels=1, binarise="threshold")) == DataSpec((1, 64, 64), "binary")
    assert spec_from_card(config("tabular")) is None
    assert spec_from_card(config("npz")) is None


def test_binarising_colour_is_refused_from_the_card(config: Config) -> None:
    with pytest.raises(UserError, match="takes grey levels, but images is discrete 3x64x64"):
        spec_from_card(config("images", binarise="threshold"))


def test_a_model_that_needs_labels_refuses_data_without() -> None:
    card = {"kinds": ["binary"], "labels": True}
    with pytest.raises(UserError, match="model=cgan takes data with labels, and data=binarized_mnist has none"):
        check_pair(card, DataSpec((1, 28, 28), "binary", num_classes=0), "binarized_mnist", "cgan")
    check_pair(card, DataSpec((1, 8, 8), "binary", num_classes=10), "digits_binary", "cgan")
    check_pair(card, DataSpec((2,), "binary"), "npz", "cgan")  # only the file tells

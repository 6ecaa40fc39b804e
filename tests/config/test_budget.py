"""Amounts with units: what they come to, and what is refused."""

import pytest

from dgmbench.config.budget import Amount
from dgmbench.errors import UserError


@pytest.mark.parametrize(
    ("text", "images_per_epoch", "batch", "expected"),
    [
        ("20ep", 1000, 100, 200),
        ("0.5ep", 1000, 100, 5),
        ("1ep", 1001, 100, 11),  # the last batch reaches into the next epoch
        ("5000ba", 7, 3, 5000),
        ("3e6im", 1000, 128, 23438),
        ("1im", 1000, 128, 1),
    ],
)
def test_amounts_in_batches(text: str, images_per_epoch: int, batch: int, expected: int) -> None:
    assert Amount.parse(text).batches(images_per_epoch, batch) == expected


def test_seconds_are_no_amount_of_data() -> None:
    minute = Amount.parse("60s", ("s", "ba"))
    assert minute.seconds == 60
    with pytest.raises(ValueError, match="60s"):
        minute.batches(1000, 100)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("20", "no unit"),
        (20, "no unit"),
        ("20epochs", "unit 'epochs'"),
        ("60s", "unit 's'"),
        ("-1ep", "more than zero"),
        ("0ba", "more than zero"),
        ("2.5ba", "whole number of batches"),
        ("soon", "not an amount"),
        ("", "not an amount"),
        ("nanep", "not an amount"),
        ("infep", "not an amount"),
        ("1e999999999ep", "not an amount"),
        ("1_0ep", "not an amount"),
        (None, "not an amount"),
    ],
)
def test_bad_amounts_name_the_value_and_give_examples(text: object, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        Amount.parse(text, what="trainer.budget")
    assert f"trainer.budget={text}" in str(caught.value)
    assert "20ep (epochs), 5000ba (batches) or 3e6im (images)" in str(caught.value)


def test_zero_where_it_is_allowed() -> None:
    assert Amount.parse("0ba", zero=True).batches(1000, 100) == 0
    with pytest.raises(UserError, match="at least zero"):
        Amount.parse("-1ba", zero=True)

"""Every configured model is proved on its card's tiny instance, as ``dgm verify model=NAME`` would."""

import pytest

from dgmbench.cards import read_cards
from dgmbench.config import complete, compose
from dgmbench.verify import verify_config

CARDS = read_cards()


@pytest.mark.parametrize("name", CARDS)
def test_the_model_verifies(name: str) -> None:
    checks = verify_config(complete(compose("train", [f"model={name}"])), CARDS[name])
    failed = [check for check in checks if check.passed is False]
    assert not failed, "\n".join(f"{c.name}: {c.measured} against {c.tolerance} ({c.note})" for c in failed)
    assert sum(check.passed is True for check in checks) >= 10

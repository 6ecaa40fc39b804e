"""Every configured model is proved on its card's tiny instance, as ``dgm verify model=NAME`` would."""

import pytest

from dgmbench.config import complete, compose
from dgmbench.config.cards import read_cards
from dgmbench.errors import UserError
from dgmbench.verify import tiny_instances, verify_config

CARDS = read_cards()


@pytest.mark.parametrize("name", CARDS)
def test_the_model_verifies(name: str) -> None:
    checks = verify_config(complete(compose("train", [f"model={name}"])), CARDS[name])
    failed = [check for check in checks if check.passed is False]
    assert not failed, "\n".join(f"{c.name}: {c.measured} against {c.tolerance} ({c.note})" for c in failed)
    assert sum(check.passed is True for check in checks) >= 10


@pytest.mark.parametrize(
    ("words", "specs"),
    [
        (["model=vae"], ["binary 1x3x3", "discrete 1x2x2, 3 levels", "real 2"]),
        (["model=made"], ["binary 10", "discrete 1x2x2, 3 levels", "discrete 1x2x2, 4 levels", "real 2"]),
        (["model=vae", "data=digits"], ["discrete 1x2x2, 3 levels"]),
        (["model=vae", "data=toy2d"], ["real 2"]),
        (["model=gan", "data=toy2d"], ["real 2"]),
        (["model=gan", "data.binarise=threshold"], ["binary 1x3x3"]),
        (["model=dcgan", "data.binarise=threshold"], ["binary 1x16x16"]),
        (["model=rbm"], ["binary 6"]),
    ],
)
def test_the_data_decide_the_tiny_instance(words: list[str], specs: list[str]) -> None:
    instances = tiny_instances(complete(compose("train", words)), CARDS[words[0].partition("=")[2]])
    assert [str(spec) for _, spec in instances] == specs
    if words[0] in ("model=vae", "model=gan"):
        assert all(node["hidden_sizes"] == [8] for node, _ in instances)


def test_a_gaussian_of_levels_verifies() -> None:
    completed = complete(compose("train", ["model=vae", "data=digits", "model.observation=gaussian"]))
    checks = {check.name: check.passed for check in verify_config(completed, CARDS["vae"])}
    assert checks["mean weights sum to 1 over x"] is True
    assert checks["samples follow the weights"] is True
    assert False not in checks.values()


def test_an_instance_that_the_settings_do_not_fit_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgmbench.verify.PARTS", {})
    completed = complete(compose("train", ["model=vae", "model.observation=bernoulli"]))
    checks = verify_config(completed, CARDS["vae"])
    assert [(check.name, check.passed) for check in checks] == [
        ("the model on discrete 1x2x2, 3 levels", None),
        ("the model on real 2", None),
    ]
    assert "takes binary data" in checks[0].note


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["model=wgan_gp", "model.net=resnet"],
            r"tiny instance of model=wgan_gp is too small .*\(net=resnet takes square",
        ),
        (["model=wgan_gp", "model.net=resnet", "data=digits32"], "too small for these settings"),
        (["model=vae", "model.samples=0"], "model.samples=0 must be at least 1"),
        (["model=rbm", "data=digits"], "takes binary data"),
    ],
)
def test_what_cannot_be_verified_says_why(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        verify_config(complete(compose("train", words)), CARDS[words[0].partition("=")[2]])
    assert "another data set" not in str(caught.value)

"""The sentence VAE: what the decoder is shown, what the bound is bounded by, and a code that stays in use."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dgmbench.data import load
from dgmbench.data.grammar import ENGLISH
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.data.text import decode_tokens
from dgmbench.errors import UserError
from dgmbench.models.vae.wd_vae import WdVae

from ...fitting import fit_by_adam

SPEC = DataSpec((5,), "tokens", 4, end=0)
SMALL = {"width": 4, "hidden": 6, "latent": 2}
CONFIG = Path(__file__).parents[3] / "configs" / "data" / "text_small.yaml"


def test_without_words_the_next_one_depends_on_the_code_alone():
    torch.manual_seed(0)
    model = WdVae(SPEC, **SMALL, word_dropout=1.0).double()
    g = torch.Generator().manual_seed(0)
    x, other = torch.randint(1, 4, (2, 6, 5), generator=g)
    z = torch.randn(6, 2, generator=g, dtype=torch.float64)
    logits = model.decoder.logits(x, z)
    assert torch.equal(logits, model.decoder.logits(other, z))
    assert (logits - model.decoder.logits(x, z + 1)).abs().amax() > 1e-3
    assert (logits[:, 1:] - logits[:, :-1]).abs().amax() > 1e-3  # the place is known, by the state
    # so p(x | z) is a product over places, and what the loss has is what is measured
    product = logits.log_softmax(2).gather(2, x[..., None])[..., 0].sum(1)
    assert torch.allclose(model.log_prob_given(x, z), product)
    seeing = WdVae(SPEC, **SMALL, word_dropout=0.5).double()
    assert (seeing.decoder.logits(x, z) - seeing.decoder.logits(other, z)).abs().amax() > 1e-3


def test_each_word_is_unknown_with_the_stated_probability_and_in_training_only():
    torch.manual_seed(0)
    model = WdVae(SPEC, **SMALL, word_dropout=0.3).double()
    g = torch.Generator().manual_seed(0)
    x = torch.randint(1, 4, (4000, 5), generator=g)
    seen = model.dropped(x, g)
    unknown = seen == 5  # after four tokens and the beginning
    assert torch.equal(seen[~unknown], x[~unknown])
    assert abs(unknown.double().mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / unknown.numel())
    # the loss, from the logits of a decoder that is shown the dropped words
    batch = Batch(x[:7])
    loss, logs = model.loss("model", batch, torch.Generator().manual_seed(3))
    g = torch.Generator().manual_seed(3)
    mean, log_sigma = model.posterior(batch.x)
    z = mean + log_sigma.exp() * torch.randn(1, 7, 2, generator=g, dtype=torch.float64)[0]
    shown = model.dropped(batch.x, g)
    log_p = model.decoder.logits(shown, z).log_softmax(2).gather(2, batch.x[..., None])[..., 0].sum(1)
    kl = 0.5 * (mean**2 + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(1)
    assert logs["elbo"].item() == pytest.approx((log_p - kl).mean().item())
    assert loss.item() == pytest.approx(-log_p.mean().item())  # the KL's weight starts at 0
    with_words = model.elbo(batch.x, generator=torch.Generator().manual_seed(3)).mean()
    assert with_words.item() != pytest.approx(logs["elbo"].item())


def test_the_mean_weight_is_the_likelihood_by_quadrature():
    """One latent dimension: log p(x) by Gauss-Hermite quadrature over z, where words end and where they do not."""
    torch.manual_seed(0)
    model = WdVae(SPEC, width=4, hidden=6, latent=1, word_dropout=0.5).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    x = torch.tensor([[1, 2, 3, 1, 2], [3, 0, 0, 0, 0], [0, 0, 0, 0, 0], [2, 2, 1, 0, 0]])
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    noise = torch.from_numpy(nodes)[:, None]
    each = torch.stack([model.log_prob_given(x, z.expand(4, 1)) for z in noise])
    exact = (each + torch.from_numpy(np.log(weights / weights.sum()))[:, None]).logsumexp(0)
    w = model.log_weights(x, 20_000, generator=torch.Generator().manual_seed(0)).exp() / exact.exp()
    assert ((w.mean(0) - 1).abs() < 4 * w.std(0) / 20_000**0.5).all()
    after = torch.tensor([[1, 0, 2, 0, 0]])  # a word after the end
    assert model.log_weights(after, 3, generator=torch.Generator()).eq(-torch.inf).all()


@pytest.fixture(scope="module")
def text():
    data = load({**yaml.safe_load(CONFIG.read_text()), "train": 2000, "valid": 10, "test": 500}, Path("/nonexistent"))
    return data.spec, torch.from_numpy(data.splits["train"].x), torch.from_numpy(data.splits["test"].x)


@pytest.fixture(scope="module")
def fitted(text):
    spec, train, _ = text
    found = {}
    for name, dropout, warmup in (("both", 0.5, 120), ("neither", 0.0, 0)):
        torch.manual_seed(0)
        model = WdVae(spec, width=24, hidden=32, latent=8, word_dropout=dropout, kl_warmup=warmup)
        found[name] = fit_by_adam(model, train, 160, lr=1e-2)
    return found


def test_the_code_stays_in_use_by_annealing_and_dropped_words(text, fitted):
    _, _, test = text
    rate = {}
    for name, model in fitted.items():
        with torch.no_grad():
            mean, log_sigma = model.posterior(test)
            rate[name] = (0.5 * (mean**2 + (2 * log_sigma).exp() - 1) - log_sigma).sum(1).mean().item()
    assert rate["both"] > 0.5
    assert rate["neither"] < 0.1


def test_no_bound_exceeds_what_the_grammar_allows(text, fitted):
    """-elbo is an NLL, whose expectation is at least the grammar's entropy; here pair by pair."""
    spec, _, test = text
    words = [line.split() for line in decode_tokens(test.numpy(), spec)]
    exact = np.array([ENGLISH.log_prob(w) for w in words])
    for model in fitted.values():
        with torch.no_grad():
            excess = -model.elbo(test, generator=torch.Generator().manual_seed(0)).double().numpy() + exact
        assert excess.mean() > -4 * excess.std() / len(excess) ** 0.5
        assert excess.mean() < 4  # and it has learned: one symbol for each word would cost 24 nats more


def test_halfway_between_two_codes_lies_a_sentence(text, fitted):
    spec, _, test = text
    model = fitted["both"]
    with torch.no_grad():
        code = model.encode(test[:200])
        halfway = model.decode((code[:100] + code[100:]) / 2)
    grammatical = [math.isfinite(ENGLISH.log_prob(w.split())) for w in decode_tokens(halfway.numpy(), spec)]
    assert np.mean(grammatical) > 0.5


@pytest.mark.parametrize(
    ("spec", "arguments", "said"),
    [
        (DataSpec((1, 2, 2), "binary", 2), {}, "sequences of tokens"),
        (SPEC, {"word_dropout": 1.5}, "model.word_dropout=1.5"),
        (SPEC, {"latent": 0}, "model.latent=0"),
    ],
)
def test_what_it_does_not_take(spec, arguments, said):
    with pytest.raises(UserError, match=said):
        WdVae(spec, **arguments)

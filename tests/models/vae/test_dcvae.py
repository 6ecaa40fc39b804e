"""The VAE with a dilated decoder: its reach, its sampler, and what the code has to say with it."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.models.vae.dcvae import Dcvae
from dgmbench.verify import bounds
from dgmbench.verify.subject import Subject

from ...fitting import fit_by_adam

SMALL = {"width": 4, "hidden": 8, "latent": 2, "channels": 6, "skip_channels": 8}
TOPICS, LENGTH = 4, 12
WORDS = torch.full((TOPICS, TOPICS), 0.1).fill_diagonal_(0.7)
SPEC = DataSpec((LENGTH,), "tokens", TOPICS)


@pytest.mark.parametrize(("kernel", "dilations"), [(2, (1,)), (3, (1, 2)), (2, (1, 3, 2))])
def test_it_sees_so_many_words_back_and_nothing_of_the_future(kernel, dilations):
    torch.manual_seed(0)
    model = Dcvae(SPEC, kernel=kernel, dilations=dilations, **SMALL).double()
    reach = 1 + (kernel - 1) * sum(dilations)
    assert model.decoder.net.receptive_field == reach
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, TOPICS, (40, LENGTH), generator=g)
    z = torch.randn(40, 2, generator=g, dtype=torch.float64)
    logits = model.decoder.logits(x, z)
    for t in range(LENGTH):
        moved = x.clone()
        moved[:, t] = (x[:, t] + 1) % TOPICS
        changed = (model.decoder.logits(moved, z) - logits).abs().amax((0, 2)) > 1e-12
        assert changed.nonzero().flatten().tolist() == list(range(t + 1, min(t + reach, LENGTH - 1) + 1))
    assert ((model.decoder.logits(x, z + 1) - logits).abs().amax((0, 2)) > 1e-9).all()  # z at every place


def test_likelihood_and_draws_are_those_of_the_conditionals():
    torch.manual_seed(0)
    spec = DataSpec((4,), "tokens", 3, end=0)
    model = Dcvae(spec, **SMALL).double()
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.mul_(2)
    z = 2 * torch.randn(1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    every = every[~((every == 0).int().diff(dim=1) < 0).any(1)]
    log_p = model.log_prob_given(every, z.expand(len(every), -1))
    assert log_p.exp().sum().item() == pytest.approx(1.0)
    by_hand = 0.0
    for t, word in enumerate((2, 1, 0)):
        before = torch.tensor([[*(2, 1, 0)[:t], *[0] * (4 - t)]])
        by_hand += model.decoder.logits(before, z)[0, t].log_softmax(0)[word].item()
    assert log_p[(every == torch.tensor([2, 1, 0, 0])).all(1)].item() == pytest.approx(by_hand)
    n = 4000  # the sampler keeps the past in queues; frequencies against exp(log p), by chi-squared
    drawn = model.sample_given(z.expand(n, -1), generator=torch.Generator().manual_seed(1))
    index = {tuple(row): i for i, row in enumerate(every.tolist())}
    counts = np.bincount([index[tuple(row)] for row in drawn.tolist()], minlength=len(every))
    expected = n * log_p.exp().detach().numpy()
    chi2 = ((counts - expected) ** 2 / expected).sum()
    freedom = len(every) - 1
    assert chi2 < freedom + 4.5 * math.sqrt(2 * freedom)
    likely = model.decode(z)[0].tolist()
    for t in range(4):
        if 0 in likely[:t]:
            assert likely[t] == 0
        else:
            assert likely[t] == model.decoder.logits(torch.tensor([likely]), z)[0, t].argmax().item()


def topics(n, seed):
    """Words of a topic, one of four for each text, and log p(x): all that a text has in common is its topic."""
    g = torch.Generator().manual_seed(seed)
    topic = torch.randint(TOPICS, (n,), generator=g)
    x = torch.multinomial(WORDS[topic], LENGTH, replacement=True, generator=g)
    log_p = (F.one_hot(x, TOPICS).double().sum(1) @ WORDS.log().double().T - math.log(TOPICS)).logsumexp(1)
    return x, log_p


def test_the_farther_it_sees_the_less_the_code_says():
    """The topic is in the words before, if the decoder sees enough of them; and no bound exceeds what is possible."""
    train, _ = topics(2000, 0)
    test, exact = topics(1000, 1)
    rates = []
    for kernel, dilations in ((2, (1,)), (3, (1, 1)), (3, (1, 2, 4))):
        torch.manual_seed(0)
        model = Dcvae(
            SPEC, width=8, hidden=16, latent=2, kernel=kernel, dilations=dilations, channels=12, skip_channels=16,
            kl_warmup=120,
        )  # fmt: skip
        fit_by_adam(model, train, 180, lr=1e-2)
        with torch.no_grad():
            mean, log_sigma = model.posterior(test)
            rates.append((0.5 * (mean**2 + (2 * log_sigma).exp() - 1) - log_sigma).sum(1).mean().item())
            excess = exact - model.elbo(test, generator=torch.Generator().manual_seed(2)).double()
        assert excess.mean() > -4 * excess.std() / len(excess) ** 0.5
    assert rates[0] > rates[1] > rates[2]
    assert rates[0] > 0.3


def test_words_after_the_end_leave_no_sum_undecided(monkeypatch):
    """Their bound is -inf in every draw, which is no noise."""
    monkeypatch.setattr(bounds, "MOST", 2**12)
    spec = DataSpec((3,), "tokens", 3, end=0)
    subject = Subject(lambda: Dcvae(spec, **SMALL), spec, "lower bound", 0)
    with torch.no_grad():
        checks = {check.name: check for check in bounds.sums(subject, subject.model())}
    assert checks["exp(ELBO) sums to at most 1 over x"].passed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"dilations": ()}, "dilations is empty"), ({"kernel": 1}, "model.kernel=1"), ({"dilations": (0,)}, "dilations")],
)
def test_what_it_does_not_take(arguments, said):
    with pytest.raises(UserError, match=said):
        Dcvae(SPEC, **arguments)

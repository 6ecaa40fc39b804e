"""The hybrid objective of the conditional VAE: its two gradients, prior draws by quadrature, and held-out quadrants."""

import math
from pathlib import Path

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.config import compose, resolve
from dgmbench.data import load
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.vae.cvae import Cvae
from dgmbench.nn.encoders import mlp

GIVEN = DataSpec((1, 2, 2), "binary", given=DataSpec((3,), "binary"))
X = torch.randint(2, (40, 1, 2, 2), generator=Generator().manual_seed(1)).byte()
C = torch.randint(2, (40, 3), generator=Generator().manual_seed(2)).byte()


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(alpha: float) -> Cvae:
    torch.manual_seed(3)
    return Cvae(GIVEN, hidden_sizes=(6,), latent=1, alpha=alpha).double()


def test_prior_draws_estimate_the_conditional_probability_of_quadrature() -> None:
    """log 1/k sum p(x | z_i, c) over a code of one dimension; its exponential is unbiased."""
    nodes, weights = (torch.from_numpy(each) for each in hermegauss(100))
    model = make(0.5)
    with torch.no_grad():
        code = model.code(None, C)
        mean, log_sigma = model.prior_moments(code)
        z = mean + log_sigma.exp() * nodes[:, None, None]
        exact = (model.log_likelihood(X, z, code) + (weights / math.sqrt(2 * math.pi)).log()[:, None]).logsumexp(0)
        draws = torch.stack([model.log_prob_by_prior(X, 100, given=C, generator=seeded(k)) for k in range(60)])
    p = draws.exp()
    assert ((p.mean(0) - exact.exp()).abs() < 4.5 * p.std(0) / 60**0.5 + 1e-12).all()
    assert (draws.mean(0) <= exact + 4.5 * draws.std(0) / 60**0.5).all()


def test_the_gradient_of_gsnn_reaches_the_prior_and_never_the_recognition_network() -> None:
    """The hybrid's gradient is alpha of the bound's and 1 - alpha of GSNN's, each taken by itself."""
    model, batch = make(0.3), Batch(X, given=C)
    assert model.encoder is not None
    assert model.prior is not None
    found = torch.autograd.grad(model.loss("model", batch, seeded())[0], list(model.parameters()))
    g, code = seeded(), model.code(None, C)
    reconstruction, kl = model.terms(X, code, 1, g)
    bound = (reconstruction - kl.sum(1)).mean()
    mean, log_sigma = model.prior_moments(code)
    z = mean + log_sigma.exp() * torch.randn(1, 40, 1, generator=g, dtype=torch.float64)
    logits = model.decoder(torch.cat([z[0], code], 1))[:, 0]
    gsnn = -F.binary_cross_entropy_with_logits(logits, X.double(), reduction="none").sum((1, 2, 3)).mean()
    own = torch.autograd.grad(gsnn, list(model.parameters()), retain_graph=True, allow_unused=True)
    of_bound = torch.autograd.grad(bound, list(model.parameters()))
    named = dict(zip((name for name, _ in model.named_parameters()), own, strict=True))
    assert all(grad is None for name, grad in named.items() if name.startswith("encoder."))
    assert all(grad is not None and grad.abs().max() > 0 for name, grad in named.items() if name.startswith("prior."))
    for one, a, b in zip(found, of_bound, own, strict=True):
        torch.testing.assert_close(one, -0.3 * a - (0.0 if b is None else 0.7 * b))


def trained(net: nn.Module, loss: object, batches: list[Batch], epochs: int) -> None:
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(epochs):
        for batch in batches:
            optimiser.zero_grad()
            loss(batch).backward()  # type: ignore[operator]
            optimiser.step()


def test_held_out_quadrants_are_more_probable_than_to_a_deterministic_network(tmp_path: Path) -> None:
    """log p(x | c) by 100 draws of the prior, against a network of the same sizes that says each pixel by itself."""
    data = load(
        resolve(compose("train", ["model=made", "data=digits_quadrants", "data.quadrants=1"]))["data"], tmp_path
    )
    train, test = data.splits["train"], data.splits["test"]
    x, c = torch.tensor(train.x[:]), torch.tensor(train.given[:])
    batches = [Batch(x[rows], given=c[rows]) for rows in torch.arange(len(x)).split(100)]
    held, given = torch.tensor(test.x[:]), torch.tensor(test.given[:])
    torch.manual_seed(0)
    model, g = Cvae(data.spec, hidden_sizes=(64,), latent=8, alpha=0.5, input_noise=0.1), seeded()
    trained(model, lambda batch: model.loss("model", batch, g)[0], batches, 46)
    plain = mlp([64, 64, 64, 64])

    def nll(x: Tensor, c: Tensor) -> Tensor:
        logits = plain(c.float().flatten(1))
        return F.binary_cross_entropy_with_logits(logits, x.float().flatten(1), reduction="none").sum(1)

    best = torch.full((len(held),), math.inf)
    for _ in range(15):  # at its best on the held-out part itself, in its favour
        trained(plain, lambda batch: nll(batch.x, batch.given).mean(), batches, 2)
        with torch.no_grad():
            best = min(best, nll(held, given), key=lambda each: each.mean().item())
    with torch.no_grad():
        gains = best + model.log_prob_by_prior(held, 100, given=given, generator=seeded(1))
    assert gains.mean() > 2 * gains.std() / len(gains) ** 0.5

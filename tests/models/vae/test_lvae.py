"""The ladder VAE: its merge against the product of densities, its bound against quadrature, and its upper layers."""

import math
from pathlib import Path

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Generator, Tensor
from torch.distributions import Normal, kl_divergence

from dgmbench.config import compose, resolve
from dgmbench.data import load
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.vae.iwae import Iwae
from dgmbench.models.vae.lvae import Lvae
from dgmbench.models.vae.vae import ElboModel
from dgmbench.nn.batchnorm import BatchNorm
from dgmbench.nn.gaussians import Moments, merged

SPEC = DataSpec((1, 2, 2), "binary")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(**settings: object) -> Lvae:
    torch.manual_seed(1)
    model = Lvae(SPEC, **{"latent": (1, 1), "hidden_sizes": (6, 5), "depth": 1, "kl_warmup": 0, **settings})  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
        for head in model.said:  # proposals that are wide enough for weights of a finite variance
            head.weight.mul_(0.3)
            head.bias[1:] = 1.0
        for layer in model.modules():
            if isinstance(layer, BatchNorm):
                layer.running_mean.uniform_(-0.3, 0.3, generator=seeded())
                layer.running_var.uniform_(0.5, 1.0, generator=seeded())
    return model.double().eval()


def images(n: int = 8) -> Tensor:
    return torch.randint(2, (n, 1, 2, 2), generator=seeded(3)).byte()


def test_the_merge_is_the_product_of_gaussians() -> None:
    g = seeded()
    a, b = (Moments(torch.randn(20, generator=g).double(), torch.randn(20, generator=g).double()) for _ in range(2))
    grid = torch.linspace(-30, 30, 30_001, dtype=torch.float64)
    product = torch.stack(
        [(Normal(*p).log_prob(grid) + Normal(*q).log_prob(grid)).exp() for p, q in zip(
            zip(a.mean, a.log_sigma.exp(), strict=True), zip(b.mean, b.log_sigma.exp(), strict=True), strict=True)]
    )  # fmt: skip
    weight = product / product.sum(1, keepdim=True)
    mean = (weight * grid).sum(1)
    sigma = (weight * (grid - mean[:, None]).square()).sum(1).sqrt()
    found = merged(a, b)
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.log_sigma, sigma.log())
    far = merged(Moments(torch.tensor(1.0), torch.tensor(400.0)), Moments(torch.tensor(2.0), torch.tensor(-400.0)))
    assert [value.item() for value in far] == [2.0, -400.0], "no overflow"


@torch.no_grad()
def test_the_posterior_of_a_layer_is_the_merge_of_both_words_and_the_kl_that_of_torch() -> None:
    model, x = make(), images()
    path = model.infer(x, 3, seeded())
    h = model.scaling(x).double().flatten(1)
    words = []
    for net, head in zip(model.up, model.said, strict=True):
        h = net(h)
        words.append(head(h))
    torch.testing.assert_close(path.posteriors[1].mean, words[1][:, :1])
    expected = model.down[0](path.z[1].view(-1, 1)).view(3, 8, 2)
    precision = (-words[0][:, 1:]).exp() + (-expected[..., 1:]).exp()
    mean = (words[0][:, :1] * (-words[0][:, 1:]).exp() + expected[..., :1] * (-expected[..., 1:]).exp()) / precision
    torch.testing.assert_close(path.posteriors[0].mean, mean)
    torch.testing.assert_close(path.posteriors[0].log_sigma, -0.5 * precision.log())
    torch.testing.assert_close(path.priors[0].mean, expected[..., :1])
    _, kl = model._terms(x, 3, seeded())
    for layer in range(2):
        q, p = path.posteriors[layer], path.priors[layer]
        wanted = kl_divergence(Normal(q.mean, q.log_sigma.exp()), Normal(p.mean, p.log_sigma.exp()))
        torch.testing.assert_close(kl[:, layer], wanted.view(-1, 8).mean(0))


@torch.no_grad()
def test_the_bound_lies_below_quadrature_over_both_layers_and_weights_average_to_it() -> None:
    model, x = make(), images(4)
    nodes, weights = (torch.from_numpy(each) for each in hermegauss(60))
    noise = torch.cartesian_prod(nodes, nodes)
    log_share = (weights[:, None] * weights).flatten().log() - math.log(2 * math.pi)
    exact = torch.stack([model.log_prob_given(row.expand(len(noise), -1, -1, -1), noise) for row in x], 1)
    exact = (exact + log_share[:, None]).logsumexp(0)
    w = model.log_weights(x, 40_000, generator=seeded())
    error = w.exp().std(0) / 200
    assert ((w.exp().mean(0) - exact.exp()).abs() < 4 * error).all()
    assert (error < 0.02 * exact.exp()).all()
    elbo = model.elbo(x.repeat(2000, 1, 1, 1), generator=seeded(1)).view(2000, 4)
    assert (elbo.mean(0) < exact - 4 * elbo.std(0) / 2000**0.5).all()
    assert ((elbo.mean(0) - w.mean(0)).abs() < 4 * (elbo.std(0) / 2000**0.5 + w.std(0) / 200)).all()


def test_warm_up_weighs_the_kl_and_batch_norm_keeps_the_pass_of_the_loss() -> None:
    model = make(kl_warmup=10).train()
    batch = Batch(images(30))
    for _ in range(5):
        loss, logs = model.loss("model", batch, seeded())
        model.after_step("model", batch, seeded())
    loss, logs = model.loss("model", batch, seeded())
    assert loss.item() == pytest.approx((0.5 * logs["kl"] - logs["reconstruction"]).item())
    assert logs["kl_1"] + logs["kl_2"] == pytest.approx(logs["kl"].item())
    first = model.up[0][0](model.scaling(batch.x).double().flatten(1))
    for _ in range(100):
        model.loss("model", batch, seeded())
        model.after_step("model", batch, seeded())
    torch.testing.assert_close(model.up[0][1].running_mean, first.mean(0), atol=1e-4, rtol=1e-3)


def active(means: Tensor) -> int:
    """Units whose mean moves with x, by the threshold of Burda et al."""
    return int((means.var(0) > 0.01).sum())


def test_more_upper_units_are_active_than_in_the_plain_hierarchy(tmp_path: Path) -> None:
    data = load(resolve(compose("train", ["model=lvae"]))["data"], tmp_path)
    x = torch.as_tensor(data.splits["train"].x)
    latent = (12, 6, 4)
    torch.manual_seed(0)
    ladder = Lvae(data.spec, latent=latent, hidden_sizes=(48, 32, 24), depth=1, kl_warmup=60)
    plain = Iwae(data.spec, latent=latent, hidden_sizes=(48,), upper_sizes=(32,), k=1)
    models: tuple[ElboModel | Iwae, ...] = (ladder, plain)
    for model in models:
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        for step in range(120):
            batch = Batch(x[torch.randint(len(x), (50,), generator=seeded(step))])
            loss, _ = model.loss("model", batch, seeded(step))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            model.after_step("model", batch, seeded(step))
    assert x.max() == 1
    ladder.eval()
    with torch.no_grad():
        ours = ladder.encode(x)[:, 12:]
        first = plain.posterior(x).mean
        theirs = [first]
        for net in plain.upwards:
            theirs.append(net(theirs[-1]).chunk(2, 1)[0])
    assert active(ours) > active(torch.cat(theirs[1:], 1)), (active(ours), active(torch.cat(theirs[1:], 1)))
    assert active(ours) >= 3, active(ours)


def test_bad_sizes_end_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"model\.latent=\[4, 2\] and model\.hidden_sizes=\[8\]"):
        Lvae(SPEC, latent=[4, 2], hidden_sizes=[8])
    with pytest.raises(UserError, match=r"latent=\[4, 0\]"):
        Lvae(SPEC, latent=[4, 0], hidden_sizes=[8, 8])

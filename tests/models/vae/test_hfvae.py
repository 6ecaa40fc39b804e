"""The terms of the KL of HFVAE on eight data points, whose q(z) is enumerated, and what a soft category tends to."""

import itertools
import math

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Generator, Tensor
from torch.distributions import Normal

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.codes.disentanglement import mutual_information
from dgmbench.models.contract import Facts
from dgmbench.models.vae.hfvae import Code, Hfvae, KlTerms, Posterior
from dgmbench.nn.aggregate_posterior import log_shares
from dgmbench.nn.gaussians import Moments

from ...fitting import fit_by_adam

SPEC = DataSpec((1, 2, 2), "binary")
N = 8
IMAGES = (torch.arange(16)[:, None] >> torch.arange(4) & 1).view(16, 1, 2, 2).byte()


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(**settings: object) -> Hfvae:
    torch.manual_seed(1)
    model = Hfvae(SPEC, **{"hidden_sizes": (6,), "sampling": "mss", **settings}).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
    model.prepare(Facts(N, {}))
    return model


def tables(*sizes: int) -> list[Tensor]:
    """A posterior of each of several categories for every data point."""
    return [torch.randn(N, k, generator=seeded(k), dtype=torch.float64).mul(1.5).log_softmax(1) for k in sizes]


def combinations(*sizes: int) -> Tensor:
    return torch.tensor(list(itertools.product(*map(range, sizes))))


def exact_terms_of_categories(q: list[Tensor]) -> KlTerms:
    """From the table of p(n, c_1, c_2) by its entropies: I = H(n) + H(c) - H(n, c), TC = sum_d H(c_d) - H(c)."""
    joint = torch.einsum("na,nb->nab", q[0].exp(), q[1].exp()) / N

    def entropy(table: Tensor) -> Tensor:
        return torch.special.entr(table).sum()

    each = [entropy(joint.sum((0, 2))), entropy(joint.sum((0, 1)))]
    information = math.log(N) + entropy(joint.sum(0)) - entropy(joint)
    away = sum(math.log(table.shape[1]) - h for table, h in zip(q, each, strict=True))
    return KlTerms(information, sum(each) - entropy(joint.sum(0)), torch.zeros(()), away)  # type: ignore[arg-type]


def test_each_term_of_discrete_codes_is_its_exact_value() -> None:
    """Every code of every data point, at its probability."""
    q, model = tables(2, 3), make(groups=(), categories=(2, 3))
    values = combinations(2, 3)
    one_hot = [torch.eye(k, dtype=torch.float64)[values[:, d]].repeat(N, 1) for d, k in enumerate((2, 3))]
    own = torch.stack([table.repeat_interleave(6, 0).gather(1, one.argmax(1, True))[:, 0]
                       for table, one in zip(q, one_hot, strict=True)], 1)  # fmt: skip
    nothing = torch.zeros(N, 0, dtype=torch.float64)
    shares = torch.full((6 * N, N), -math.log(N), dtype=torch.float64)
    of = Posterior(Moments(nothing, nothing), tuple(q))
    found = model.kl_terms(Code(nothing.repeat_interleave(6, 0), tuple(one_hot)), of, own, shares)
    weights = own.sum(1).exp() / N
    assert weights.sum().item() == pytest.approx(1)
    for name, term, wanted in zip(KlTerms._fields, found, exact_terms_of_categories(q), strict=True):
        assert (weights * term).sum().item() == pytest.approx(wanted.item(), abs=1e-10), name
        assert name == "within_groups" or wanted > 1e-3


def test_each_term_of_groups_of_real_codes_beside_a_category_is_its_exact_value() -> None:
    """By quadrature over z in R^3, in groups of two and one; a category depends on the data point as they do."""
    nodes, share = (torch.from_numpy(v) for v in hermegauss(7))
    share = share / math.sqrt(2 * math.pi)
    mean, log_sigma = torch.randn(2, N, 3, generator=seeded(5), dtype=torch.float64)
    sigma = (0.3 * log_sigma - 0.3).exp()
    (category,), model = tables(2), make(groups=(2, 1), categories=(2,))
    places = torch.cartesian_prod(nodes, nodes, nodes)
    weights = torch.cartesian_prod(share, share, share).prod(1)
    z = (mean[:, None] + sigma[:, None] * places)[:, None].expand(-1, 2, -1, -1).reshape(-1, 3)
    c = torch.eye(2, dtype=torch.float64).repeat_interleave(len(places), 0).repeat(N, 1)
    number = torch.arange(N).repeat_interleave(2 * len(places))
    of_z = Normal(mean, sigma).log_prob(z[:, None])  # (rows, N, 3)
    of_c = torch.einsum("rk,nk->rn", c, category)[..., None]
    every = torch.cat([of_z, of_c], 2)
    own = every[torch.arange(len(z)), number]
    whole, first, parts = ((of.sum(2).logsumexp(1) - math.log(N)) for of in (every, every[..., :2], every[..., :0]))
    single = every.logsumexp(1) - math.log(N)
    assert parts.abs().max() < 1e-12
    prior = Normal(0.0, 1.0).log_prob(z).sum(1) - math.log(2)
    wanted = KlTerms(
        own.sum(1) - whole, whole - first - single[:, 2] - single[:, 3], first - single[:, :2].sum(1),
        single.sum(1) - prior,
    )  # fmt: skip
    at = weights.repeat(2 * N) * own[:, 3].exp() / N
    assert at.sum().item() == pytest.approx(1)
    shares = torch.full((len(z), N), -math.log(N), dtype=torch.float64)
    of = Posterior(Moments(mean, sigma.log()), (category,))
    found = model.kl_terms(Code(z, (c,)), of, own, shares)
    for name, term, right in zip(KlTerms._fields, found, wanted, strict=True):
        assert (at * term).sum().item() == pytest.approx((at * right).sum().item(), abs=1e-10), name
        assert (at * right).sum() > 0.01


def exact_loss(model: Hfvae, x: Tensor, weights: tuple[float, ...]) -> Tensor:
    """That of true categories, enumerated; the whole data set is the batch."""
    q = model.posterior(x)
    terms = exact_terms_of_categories(list(q.categories))
    total = sum(w * term for w, term in zip(weights, terms, strict=True))
    for a, b in combinations(2, 3).tolist():
        decoded = model.decode(torch.tensor([[a, b]], dtype=torch.float64).expand(N, 2))
        log_p = torch.distributions.Bernoulli(decoded).log_prob(x.double()).flatten(1).sum(1)
        total = total - ((q.categories[0][:, a] + q.categories[1][:, b]).exp() * log_p).mean()
    return total


def test_the_loss_tends_to_that_of_true_categories_as_the_temperature_falls() -> None:
    away = []
    for temperature in (1.0, 0.01):
        model = make(groups=(), categories=(2, 3), alpha=0.5, beta=3.0, gamma=2.0, temperature=temperature)
        with torch.no_grad():
            drawn = torch.stack([model.loss("model", Batch(IMAGES[:N]), seeded(k))[0] for k in range(100)])
            wanted = exact_loss(model, IMAGES[:N], (0.5, 3.0, 2.0, 1.0))
        away.append(abs(drawn.mean() - wanted))
    assert away[-1] < 4.5 * drawn.std() / 100**0.5
    assert away[0] > 4 * away[-1]


def test_weights_of_one_leave_the_bound_and_each_weight_its_own_term() -> None:
    settings = {"groups": (2, 1), "categories": (3,), "temperature": 0.4}
    model = make(alpha=1.0, beta=1.0, gamma=1.0, **settings)
    loss, logs = model.loss("model", Batch(IMAGES[:N]), seeded())
    q = model.posterior(IMAGES[:N])
    code = model.draw(q, seeded(), soft=True)
    ratio = model.log_densities(code, q).sum(1) - model.log_densities(code, model.prior(code)).sum(1)
    assert loss.item() == pytest.approx((ratio.mean() - logs["reconstruction"]).item())
    for weight, name in zip(("alpha", "beta", "gamma"), KlTerms._fields, strict=False):
        again = make(**{"alpha": 1.0, "beta": 1.0, "gamma": 1.0, weight: 3.0, **settings})
        found = again.loss("model", Batch(IMAGES[:N]), seeded())[0]
        assert found.item() == pytest.approx((loss + 2 * logs[name]).item())
        assert abs(logs[name]) > 1e-3


def test_weights_average_to_the_probability_and_the_bound_lies_below_it() -> None:
    model = make(groups=(1,), categories=(3,))
    nodes, share = (torch.from_numpy(v) for v in hermegauss(30))
    at = torch.cartesian_prod(nodes, torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64))  # a quantile of each category
    with torch.no_grad():
        each = torch.stack([model.log_prob_given(x.expand(90, 1, 2, 2), at) for x in IMAGES], 1).exp()
        exact = (each.view(30, 3, 16).mean(1) * share[:, None]).sum(0) / math.sqrt(2 * math.pi)
        weights = model.log_weights(IMAGES, 3000, generator=seeded()).exp()
        drawn = torch.stack([model.elbo(IMAGES, generator=seeded(k)) for k in range(200)])
        mean = torch.stack([model.log_weights(IMAGES, 1, generator=seeded(k))[0] for k in range(200)])
    assert exact.sum().item() == pytest.approx(1)
    assert ((weights.mean(0) - exact).abs() < 4.5 * weights.std(0) / 3000**0.5).all()
    assert (drawn.mean(0) <= exact.log() + 4.5 * drawn.std(0) / 200**0.5).all()
    error = (drawn.var(0) + mean.var(0)).sqrt() / 200**0.5
    assert ((drawn.mean(0) - mean.mean(0)).abs() < 4.5 * error).all(), "the KL in closed form is that of the draws"


def test_codes_end_with_the_number_of_the_category_and_decode_from_it() -> None:
    model = make(groups=(2,), categories=(3, 2))
    q, codes = model.posterior(IMAGES), model.encode(IMAGES)
    assert torch.equal(codes[:, :2], q.moments.mean)
    assert torch.equal(codes[:, 2].long(), q.categories[0].argmax(1))
    again = codes.clone()
    again[:, 2:] += 0.4
    assert torch.equal(model.decode(codes), model.decode(again)), "numbers are rounded"
    again[:, 2] = (codes[:, 2] + 1) % 3
    assert not torch.equal(model.decode(codes), model.decode(again))
    assert log_shares("mss", N, N, codes).exp().sum(1).allclose(torch.ones(N, dtype=torch.float64))


def test_a_category_learns_which_of_three_patterns_it_sees() -> None:
    """The information of its number on the pattern, behind noise of 5 percent, is nearly the pattern's entropy."""
    g, n = seeded(), 600
    pattern, templates = torch.arange(n) % 3, torch.rand((3, 1, 4, 4), generator=g) < 0.5
    x = (templates[pattern] ^ (torch.rand((n, 1, 4, 4), generator=g) < 0.05)).byte()
    torch.manual_seed(0)
    model = Hfvae(DataSpec((1, 4, 4), "binary"), groups=(), categories=(3,), hidden_sizes=(32,))
    model.prepare(Facts(n, {}))
    fit_by_adam(model, x, 200, lr=1e-2)
    told = model.encode(x)[:, 0].long().numpy()
    assert mutual_information(pattern.numpy(), told) > 0.9 * math.log(3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"groups": (), "categories": ()}, "leave no code"),
        ({"categories": (1,)}, "categories"),
        ({"groups": (0,)}, "groups"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"beta": -1.0}, "beta=-1.0"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make(**settings)

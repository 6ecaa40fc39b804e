"""The knowledge-guided CVAE: its bag of words, its bound, whom the act reaches, and a code that stays in use."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Generator, Tensor

from dgmbench.data import load
from dgmbench.data.dialogues import ACTS, Dialogues
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.vae.kg_cvae import KgCvae
from dgmbench.nn.gaussians import gaussian_kl

CONFIG = Path(__file__).parents[3] / "configs" / "data" / "dialogues.yaml"
FIRST = DataSpec((3,), "tokens", 4, end=0)
SPEC = DataSpec((4,), "tokens", 5, 3, end=0, given=FIRST)
SMALL = {"width": 3, "hidden": 6, "context": 3, "latent": 2}
X = torch.tensor([[1, 2, 0, 0], [4, 4, 3, 1], [0, 0, 0, 0], [2, 3, 3, 0]])
GIVEN = torch.tensor([[1, 0, 0], [2, 3, 0], [1, 0, 0], [3, 3, 3]])
Y = torch.tensor([0, 2, 1, 1])


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(spec: DataSpec = SPEC, **settings: object) -> KgCvae:
    torch.manual_seed(0)
    model = KgCvae(spec, **{**SMALL, **settings}).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)  # so that nothing is near to its average
    return model


def test_the_bag_of_words_is_one_log_softmax_summed_over_the_replys_words():
    model = make()
    c, z = model.reader(GIVEN), torch.randn(4, 2, generator=seeded(), dtype=torch.float64)
    assert model.bag is not None
    log_p = model.bag(torch.cat([z, c], 1)).log_softmax(1)
    words = [[1, 2], [4, 4, 3, 1], [], [2, 3, 3]]  # the end is no word, and a word said twice counts twice
    by_hand = [-sum(log_p[row, w].item() for w in said) for row, said in enumerate(words)]
    assert model.bag_loss(X, z, c).tolist() == pytest.approx(by_hand)
    model.bag_loss(X, z, c).sum().backward()
    assert all(p.grad is None for p in model.decoder.parameters())


def test_the_loss_by_hand():
    model = make(bag_weight=0.5)
    loss, logs = model.loss("model", Batch(X, Y, given=GIVEN), seeded(3))
    c = model.reader(GIVEN)
    (mean, log_sigma), (at, log_width) = model.posterior(X, Y, c), model.prior_moments(c)
    z = mean + log_sigma.exp() * torch.randn(1, 4, 2, generator=seeded(3), dtype=torch.float64)[0]
    q, p = (torch.distributions.Normal(m, s.exp()) for m, s in ((mean, log_sigma), (at, log_width)))
    kl = torch.distributions.kl_divergence(q, p).sum(1)
    told = torch.nn.functional.one_hot(Y, 3).double()
    words = model.decoder.log_prob(X, torch.cat([z, c, told], 1))
    act = model.act_log_prob(z, c)[torch.arange(4), Y]
    assert loss.item() == pytest.approx((kl - words - act + 0.5 * model.bag_loss(X, z, c)).mean().item())
    assert logs["elbo"].item() == pytest.approx((words + act - kl).mean().item())
    assert logs["act_nll"].item() == pytest.approx(-act.mean().item())
    # examples without an act are left out
    some, _ = model.loss("model", Batch(X[:2], Y[:2], given=GIVEN[:2]), seeded(4))
    masked, _ = model.loss("model", Batch(X, torch.tensor([0, 2, -1, -1]), given=GIVEN), seeded(4))
    assert masked.item() == pytest.approx(some.item())


def test_the_act_enters_the_posterior_the_decoder_and_is_told_by_the_code():
    model, c = make(), make().reader(GIVEN)
    z = torch.randn(4, 2, generator=seeded(), dtype=torch.float64)
    other = (Y + 1) % 3
    assert (model.posterior(X, Y, c).mean - model.posterior(X, other, c).mean).abs().amax() > 1e-3
    before, after = (
        model.log_likelihood(X, y, z, c) - model.act_log_prob(z, c)[torch.arange(4), y] for y in (Y, other)
    )
    assert (before - after).abs().amax() > 1e-3
    assert (model.act_log_prob(z, c) - model.act_log_prob(z + 1, c)).abs().amax() > 1e-3
    plain = make(guided=False)
    assert plain.log_likelihood(X, Y * 0, z, c).tolist() == plain.log_likelihood(X, other * 0, z, c).tolist()
    assert plain.act_log_prob(z, c).eq(0).all()


def test_the_mean_weight_is_the_likelihood_by_quadrature():
    """One latent dimension: sum_y of the integral over z of p(z | c) p(y | z, c) p(x | z, c, y), each under its c."""
    model = make(latent=1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    with torch.no_grad():
        c, total = model.reader(GIVEN), []
        mean, log_sigma = model.prior_moments(c)
        for node in nodes.tolist():
            z, each = mean + log_sigma.exp() * node, []
            for act in range(3):
                y = torch.full((4,), act)
                told = torch.nn.functional.one_hot(y, 3).double()
                said = model.decoder.log_prob(X, torch.cat([z, c, told], 1))
                each.append(model.act(torch.cat([z, c], 1)).log_softmax(1)[:, act] + said)
            total.append(torch.stack(each).logsumexp(0))
        exact = (torch.stack(total) + torch.from_numpy(np.log(weights / weights.sum()))[:, None]).logsumexp(0)
        w = (model.log_weights(X, 3000, given=GIVEN, generator=seeded()) - exact).exp()
        noise = torch.tensor(nodes)[:, None, None].expand(30, 4, 1)
        given_noise = torch.stack([model.log_prob_given(X, z, given=GIVEN) for z in noise])
    assert ((w.mean(0) - 1).abs() < 4 * w.std(0) / 3000**0.5).all()
    torch.testing.assert_close(given_noise, torch.stack(total))


@pytest.fixture(scope="module")
def talk():
    settings = {**yaml.safe_load(CONFIG.read_text()), "train": 1500, "valid": 10, "test": 300}
    data = load(settings, Path("/nonexistent"))
    train, test = (data.splits[name] for name in ("train", "test"))
    return data.spec, *([torch.from_numpy(a[:]) for a in (part.x, part.y, part.given)] for part in (train, test))


@pytest.fixture(scope="module")
def fitted(talk):
    spec, (x, y, given), _ = talk
    found = {}
    for bag in (1.0, 0.0):
        torch.manual_seed(0)
        model = KgCvae(spec, width=24, hidden=32, context=16, latent=8, bag_weight=bag)
        optimiser, g = torch.optim.Adam(model.parameters(), lr=2e-2), seeded()
        for _ in range(120 if bag else 80):
            rows = torch.randint(len(x), (50,), generator=g)
            loss, _ = model.loss("model", Batch(x[rows], y[rows], given=given[rows]), g)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        found[bag] = model.eval()
    return found


def rate(model: KgCvae, x: Tensor, y: Tensor, given: Tensor) -> float:
    with torch.no_grad():
        c = model.reader(given)
        return gaussian_kl(model.posterior(x, y, c), model.prior_moments(c)).sum(1).mean().item()


def test_the_bag_of_words_keeps_the_code_in_use_without_annealing(talk, fitted):
    assert rate(fitted[1.0], *talk[2]) > 0.5
    assert rate(fitted[0.0], *talk[2]) < 0.1


def test_sampled_replies_have_the_act_that_the_decoder_was_told(talk, fitted):
    _, _, (_, _, given) = talk
    reader, model = Dialogues(), fitted[1.0]
    said, act = model.answers(given, generator=seeded(1))
    found = [reply for _, reply in reader.acts(given.numpy(), said.numpy())]
    assert np.mean([ACTS[a] == reply for a, reply in zip(act.tolist(), found, strict=True)]) > 0.8
    assert len(set(act.tolist())) > 5  # of nine: the act is drawn, not always the same
    # the act that is wished for is the one that is told
    wished = torch.tensor([ACTS.index("clarify")]).expand(len(given))
    assert torch.equal(
        model.sample(len(given), wished, given=given, generator=seeded(1)),
        model.answers(given, wished, generator=seeded(1))[0],
    )
    assert torch.equal(model.answers(given, wished)[1], wished)


def test_no_bound_exceeds_what_the_grammar_allows_and_acts_are_recognised(talk, fitted):
    _, _, (x, y, given) = talk
    exact = Dialogues().log_prob_given(x.numpy(), given.numpy())
    for model in fitted.values():
        with torch.no_grad():
            excess = exact - model.elbo(x, given=given, generator=seeded()).double().numpy()
            wrong = (model.classify(x, given=given).argmax(1) != y).float().mean()
        assert excess.mean() > -4 * excess.std() / len(excess) ** 0.5
        assert wrong < 0.1


@pytest.mark.parametrize(
    ("spec", "arguments", "said"),
    [
        (DataSpec((4,), "tokens", 5, 3, end=0), {}, "give none"),
        (DataSpec((4,), "tokens", 5, end=0, given=FIRST), {}, "needs data with labels"),
        (DataSpec((4,), "tokens", 5, 3, end=0, given=DataSpec((3,), "binary")), {}, "sequences of tokens"),
        (DataSpec((4,), "binary", num_classes=3, given=FIRST), {}, "sequences of tokens"),
        (SPEC, {"bag_weight": -1.0}, "model.bag_weight=-1.0"),
        (SPEC, {"context": 0}, "model.context=0"),
    ],
)
def test_what_it_does_not_take(spec, arguments, said):
    with pytest.raises(UserError, match=said):
        KgCvae(spec, **arguments)

"""The conditional VAE against quadrature over a code of one dimension, and its digits against a classifier."""

import math

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from sklearn.svm import SVC
from torch import Generator, Tensor
from torch.distributions import Normal, kl_divergence

from dgmbench.config import compose, resolve
from dgmbench.data import load
from dgmbench.data.digits import DigitsQuadrants
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.vae.cvae import Cvae

LABELLED = DataSpec((1, 2, 2), "binary", num_classes=3)
GIVEN = DataSpec((1, 2, 2), "binary", given=DataSpec((3,), "binary"))
NODES, WEIGHTS = (torch.from_numpy(each) for each in hermegauss(120))


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(spec: DataSpec = LABELLED, **settings: object) -> Cvae:
    torch.manual_seed(3)
    model = Cvae(spec, **{"hidden_sizes": (6,), "latent": 1, **settings}).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
    return model


def images(n: int = 40) -> Tensor:
    return torch.randint(2, (n, 1, 2, 2), generator=seeded(1)).byte()


def every_image() -> Tensor:
    return (torch.arange(16)[:, None] >> torch.arange(4) & 1).view(16, 1, 2, 2).byte()


def conditions(spec: DataSpec, n: int) -> dict[str, Tensor]:
    if spec.given is None:
        return {"y": torch.arange(n) % 3}
    return {"given": torch.randint(2, (n, 3), generator=seeded(2)).byte()}


def by_quadrature(model: Cvae, x: Tensor, code: Tensor) -> Tensor:
    """log p(x | c) = log E_p(z | c) p(x | z, c) at the nodes of Gauss and Hermite."""
    mean, log_sigma = model.prior_moments(code)
    z = mean + log_sigma.exp() * NODES[:, None, None]
    log_w = (WEIGHTS / math.sqrt(2 * math.pi)).log()[:, None]
    return (model.log_likelihood(x, z, code) + log_w).logsumexp(0).detach()


@pytest.mark.parametrize("spec", [LABELLED, GIVEN])
@pytest.mark.parametrize("learned_prior", [True, False])
def test_the_conditional_probability_by_quadrature(spec: DataSpec, learned_prior: bool) -> None:
    """It sums to one under every condition; weights average to it, and the bound lies below by KL(q || posterior)."""
    model, x = make(spec, learned_prior=learned_prior), every_image()
    codes = []
    for n in range(3):
        c = {name: value[n : n + 1].expand(16, *value.shape[1:]) for name, value in conditions(spec, 3).items()}
        code = model.code(c.get("y"), c.get("given"))
        exact = by_quadrature(model, x, code)
        assert exact.exp().sum().item() == pytest.approx(1, abs=1e-9)
        with torch.no_grad():
            weights = model.log_weights(x, 4000, **c, generator=seeded()).exp()
            bound = torch.stack([model.elbo(x, **c, generator=seeded(k)) for k in range(200)])
        assert ((weights.mean(0) - exact.exp()).abs() < 4.5 * weights.std(0) / 4000**0.5 + 1e-12).all()
        q = Normal(*(each.exp() if i else each for i, each in enumerate(model.posterior_moments(x, code))))
        p = Normal(*(each.exp() if i else each for i, each in enumerate(model.prior_moments(code))))
        z = q.mean + q.stddev * NODES[:, None, None]
        inner = (model.log_likelihood(x, z, code) * (WEIGHTS / math.sqrt(2 * math.pi))[:, None]).sum(0)
        wanted = (inner - kl_divergence(q, p).sum(1)).detach()
        assert ((bound.mean(0) - wanted).abs() < 4.5 * bound.std(0) / 200**0.5 + 1e-9).all()
        assert (wanted <= exact + 1e-9).all()
        codes.append(exact)
    assert not torch.allclose(codes[0], codes[1], atol=1e-3), "the condition matters"


def test_without_a_label_the_probability_is_the_mixture() -> None:
    model, x = make(), every_image()
    model.class_log_prior.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    each = [by_quadrature(model, x, model.code(torch.full((16,), y), None)) for y in range(3)]
    mixture = (torch.stack(each, 1) + model.class_log_prior).logsumexp(1)
    with torch.no_grad():
        weights = model.log_weights(x, 4000, generator=seeded()).exp()
    assert ((weights.mean(0) - mixture.exp()).abs() < 4.5 * weights.std(0) / 4000**0.5).all()
    drawn = model.sample(20_000, generator=seeded())
    counts = torch.bincount((drawn.flatten(1) * 2 ** torch.arange(4)).sum(1), minlength=16) / 20_000
    p = mixture.exp()
    assert ((counts - p).abs() < 4.5 * (p * (1 - p) / 20_000).sqrt()).all()


@pytest.mark.parametrize("spec", [LABELLED, GIVEN])
def test_gsnn_is_the_bound_of_the_prior_and_the_hybrid_mixes_them(spec: DataSpec) -> None:
    x, c = images(), conditions(spec, 40)
    batch = Batch(x, y=c.get("y"), given=c.get("given"))
    losses = {}
    for alpha in (1.0, 0.25, 0.0):
        model = make(spec, alpha=alpha, samples=400)
        if alpha < 1 and alpha > 0:
            own = model.state_dict()
        losses[alpha] = model.loss("model", batch, seeded())[0].item()
        if alpha == 0.25:
            code = model.code(c.get("y"), c.get("given"))
            gsnn = model.by_prior(x, code, 4000, seeded(5)).mean().item()
            bound = make(spec, samples=400)
            bound.load_state_dict(own)
            elbo = -bound.loss("model", batch, seeded())[0].item()
            assert losses[0.25] == pytest.approx(-(0.25 * elbo + 0.75 * gsnn), abs=0.05)
    none = make(spec, alpha=0.0)
    assert none.encoder is None
    code = none.code(c.get("y"), c.get("given"))
    reconstruction, kl = none.terms(x, code, 1, seeded())
    assert kl.abs().max() == 0
    torch.testing.assert_close(reconstruction, none.by_prior(x, code, 1, seeded())[0])
    assert (
        none.log_prob_by_prior(x, 500, **c, generator=seeded()) >= none.by_prior(x, code, 500, seeded()).mean(0)
    ).all()


def test_unknown_labels_are_left_out_and_noise_moves_the_condition_only_in_training() -> None:
    x, y = images(), torch.arange(40) % 3
    mixed = torch.where(torch.arange(40) < 20, y, -1)
    model = make()
    assert (
        model.loss("model", Batch(x, y=mixed), seeded())[0] == model.loss("model", Batch(x[:20], y=y[:20]), seeded())[0]
    )
    noisy = make(input_noise=0.5)
    assert noisy.loss("model", Batch(x, y=y), seeded())[0] != model.loss("model", Batch(x, y=y), seeded())[0]
    assert torch.equal(noisy.elbo(x, y=y, generator=seeded()), model.elbo(x, y=y, generator=seeded()))


def test_quadrants_are_disjoint_and_make_up_the_digit(tmp_path) -> None:
    whole = load(resolve(compose("train", ["model=made", "data=digits_binary"]))["data"], tmp_path).splits["train"].x
    for quadrants, seen in ((1, 16), (2, 32), (3, 48)):
        found = DigitsQuadrants(quadrants=quadrants).read(tmp_path)  # type: ignore[arg-type]
        part = found.parts["train"]
        assert (part.x + part.given == whole).all()
        assert int((part.given.max(0) > 0).sum()) <= seen
        outside = part.given.sum(0)[0]
        assert outside[:4, 4:].sum() == 0
        assert (part.x * part.given).sum() == 0
        assert found.spec.given == DataSpec((1, 8, 8), "binary")
    with pytest.raises(UserError, match="must be 1, 2 or 3"):
        DigitsQuadrants(quadrants=4)  # type: ignore[arg-type]


def accuracy(shuffled: bool, tmp_path) -> float:
    """Of an independent classifier on conditional samples of a model trained on the binary digits."""
    data = load(resolve(compose("train", ["model=made", "data=digits_binary"]))["data"], tmp_path)
    train, test = data.splits["train"], data.splits["test"]
    classifier = SVC().fit(train.x.reshape(len(train.x), -1), train.y)
    assert classifier.score(test.x.reshape(len(test.x), -1), test.y) >= 0.95
    x, y = torch.tensor(train.x[:]), torch.tensor(train.y[:])
    y = y[torch.randperm(len(y), generator=seeded())] if shuffled else y
    torch.manual_seed(0)
    model, g = Cvae(data.spec, hidden_sizes=(100,), latent=8), seeded()
    model.initialise(Batch(x, y=y), g)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(25):
        for rows in torch.randperm(len(x), generator=g).split(100):
            optimiser.zero_grad()
            model.loss("model", Batch(x[rows], y=y[rows]), g)[0].backward()
            optimiser.step()
    labels = torch.arange(1000) % 10
    drawn = model.sample(1000, labels, generator=seeded(4)).flatten(1).numpy()
    return float((classifier.predict(drawn) == labels.numpy()).mean())


def test_samples_are_of_their_class_and_at_chance_if_labels_meant_nothing(tmp_path) -> None:
    assert accuracy(False, tmp_path) >= 0.8
    assert accuracy(True, tmp_path) <= 0.1 + 5 * math.sqrt(0.1 * 0.9 / 1000) + 0.03


@pytest.mark.parametrize(
    ("spec", "settings", "sentence"),
    [
        (DataSpec((1, 2, 2), "binary"), {}, "needs data with labels"),
        (LABELLED, {"alpha": 1.5}, "alpha=1.5"),
        (LABELLED, {"input_noise": -1.0}, "input_noise=-1.0"),
        (DataSpec((4,), "binary", given=DataSpec((3,), "counts")), {}, "binary, discrete or real conditions"),
    ],
)
def test_what_does_not_fit_is_refused(spec: DataSpec, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Cvae(spec, **settings)  # type: ignore[arg-type]


def test_a_convolutional_encoder_sees_the_condition_as_one_more_channel() -> None:
    """Linear in the code: what a label adds to the first layer's input is its column of the map, at every pixel."""
    spec = DataSpec((1, 8, 8), "binary", num_classes=3)
    model = Cvae(spec, net="conv", channels=4, latent=2)
    x, y = torch.randint(2, (6, 1, 8, 8), generator=seeded()).byte(), torch.tensor([0, 1, 2, 0, 1, 2])
    assert model.encoder is not None
    assert model.encoder.channel is not None
    seen: list[Tensor] = []
    model.encoder.net.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0]))
    model.posterior_moments(x, model.code(y, None))
    torch.testing.assert_close(seen[0][:, :1], model.scaling(x))
    wanted = model.encoder.channel.weight.t()[y] + model.encoder.channel.bias
    torch.testing.assert_close(seen[0][:, 1], wanted.view(6, 8, 8))
    loss = model.loss("model", Batch(x, y=y), seeded())[0]
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(loss, list(model.parameters())))


def test_a_condition_that_is_missing_is_asked_for() -> None:
    with pytest.raises(UserError, match="name it, given="):
        make(GIVEN).elbo(images(), generator=seeded())

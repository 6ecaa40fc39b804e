"""VQ-VAE against the enumeration of all code maps, its prior's cache against its passes, and what each stage trains."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from dgmbench.config import compose, resolve
from dgmbench.data import load
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Facts
from dgmbench.models.vae.code_prior import CodePrior
from dgmbench.models.vae.vq_vae import VqVae

SPEC = DataSpec((1, 3, 4), "binary")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(spec: DataSpec = SPEC, **settings: object) -> VqVae:
    torch.manual_seed(1)
    small = {"codes": 2, "code_dim": 2, "channels": 4, "halvings": 1, "blocks": 1, "prior_features": 4}
    model = VqVae(spec, **{**small, "prior_blocks": 1, "prior_kernel": 3, **settings}).double()  # type: ignore[arg-type]
    model.initialise(Batch(images(spec=spec)), seeded())
    return model


def images(n: int = 40, spec: DataSpec = SPEC) -> Tensor:
    return torch.randint(spec.levels or 2, (n, *spec.shape), generator=seeded(3)).byte()


@torch.no_grad()
def test_the_bound_is_one_term_of_the_enumerated_sum_over_all_code_maps() -> None:
    """2 x 2 codes of 2 entries: 16 maps."""
    model, x = make(), images()
    terms = {}
    for names in itertools.product(range(2), repeat=4):
        index = torch.tensor(names).view(1, 2, 2)
        z = model.quantiser("code").book[index].movedim(-1, 1)
        of_x = model.observation.log_prob(model.decoder(z).unflatten(1, (1, -1)), x)
        terms[names] = model.prior.log_prob(index) + of_x
    exact = torch.stack(list(terms.values())).logsumexp(0)
    own = torch.stack(
        [terms[tuple(names.tolist())][i] for i, names in enumerate(model.code_maps(x)["code"].flatten(1))]
    )
    torch.testing.assert_close(model.elbo(x), own)
    assert (model.elbo(x) < exact).all()
    assert len(model.code_maps(x)["code"].unique()) == 2


@torch.no_grad()
def test_the_prior_sums_to_1_and_is_sampled_as_it_says() -> None:
    torch.manual_seed(0)
    prior = CodePrior(3, features=5, blocks=2, kernel=3, condition=2).double()
    for p in prior.parameters():
        p.mul_(1.5)
    condition = torch.randn(1, 2, 2, 2, generator=seeded(), dtype=torch.float64)
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    p = prior.log_prob(every, condition.expand(len(every), -1, -1, -1)).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    n = 20_000
    drawn = prior.sample(n, (2, 2), condition.expand(n, -1, -1, -1), generator=seeded(1)).flatten(1)
    counts = torch.bincount((drawn * torch.tensor([27, 9, 3, 1])).sum(1), minlength=81)
    chi2 = ((counts - n * p).square() / (n * p)).sum().item()
    assert abs(chi2 - 80) < 4 * 160**0.5
    apart = prior.log_prob(every, -condition.expand(len(every), -1, -1, -1)).exp()
    assert (apart - p).abs().max() > 0.005, "the condition counts"


@torch.no_grad()
def test_a_place_of_the_prior_sees_the_places_before_it_alone() -> None:
    torch.manual_seed(0)
    prior = CodePrior(4, features=8, blocks=2, kernel=3).double()
    index = torch.randint(4, (1, 3, 3), generator=seeded())
    base = prior.logits(index).view(9, 4)
    for place in range(9):
        other = index.clone().view(-1)
        other[place] = (other[place] + 1) % 4
        moved = (prior.logits(other.view(1, 3, 3)).view(9, 4) != base).any(1)
        assert not moved[: place + 1].any()
        assert place == 8 or moved[place + 1 :].any()


def test_stages_train_the_autoencoder_and_then_the_prior_at_its_codes() -> None:
    model, x = make(), images()
    assert [(stage.name, stage.players, stage.share) for stage in model.stages()] == [
        ("codes", ("autoencoder",), 0.5),
        ("prior", ("prior",), 0.5),
    ]
    loss, logs = model.loss("autoencoder", Batch(x), seeded())
    z = model.quantiser("code")(model.encoder(model.scaling(x).double()))
    assert loss.item() == pytest.approx((-logs["reconstruction"] + 0.25 * z.commitment.mean()).item())
    loss, _ = model.loss("prior", Batch(x), seeded())
    assert loss.item() == pytest.approx(-model.prior.log_prob(model.code_maps(x)["code"]).mean().item())
    torch.testing.assert_close(model.elbo(x).mean().item(), (logs["reconstruction"] - loss).item())


def test_codes_with_a_gradient_are_the_autoencoders_parameters() -> None:
    model = make(decay=None)
    book = model.quantiser("code").book
    assert isinstance(book, nn.Parameter)
    assert any(p is book for p in model.players()["autoencoder"])
    before = book.detach().clone()
    loss, _ = model.loss("autoencoder", Batch(images()), seeded())
    loss.backward()
    assert book.grad is not None
    assert book.grad.abs().max() > 0
    model.after_step("autoencoder", Batch(images()), seeded())
    assert torch.equal(before, book)


@torch.no_grad()
def test_the_decoder_takes_what_encode_gives() -> None:
    spec = DataSpec((3, 7, 10), "discrete", levels=5)
    model = make(spec, codes=5, halvings=2)
    x = images(4, spec)
    assert model.code_maps(x)["code"].shape == (4, 2, 3)
    assert model.encode(x).shape == (4, 2 * 2 * 3)
    torch.testing.assert_close(model.decode(model.encode(x)), model.reconstruct(x))
    assert model.sample(3, generator=seeded()).shape == (3, *spec.shape)


def test_bad_sizes_end_in_a_sentence() -> None:
    with pytest.raises(UserError, match="takes images"):
        VqVae(DataSpec((4,), "real"))
    with pytest.raises(UserError, match=r"model\.codes=500 is more than the 480 vectors"):
        make(codes=500).prepare(Facts(120, {}))
    with pytest.raises(UserError, match="prior_kernel=4 must be odd"):
        make(prior_kernel=4)
    with pytest.raises(UserError, match="codes=1"):
        make(codes=1)


def test_digits_use_many_codes_and_are_reconstructed_by_them(tmp_path: Path) -> None:
    data = load(resolve(compose("train", ["model=vq_vae", "data=digits"]))["data"], tmp_path)
    x = torch.as_tensor(data.splits["train"].x[:400])
    model = make(data.spec, codes=32, code_dim=8, channels=16).float()
    batch = Batch(x)
    model.initialise(batch, seeded())
    optimiser = torch.optim.Adam(model.players()["autoencoder"], 3e-3)
    first = None
    for step in range(50):
        part = Batch(x[torch.randperm(400, generator=seeded(step))[:50]])
        loss, logs = model.loss("autoencoder", part, seeded(step))
        first = logs["reconstruction"] if first is None else first
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.after_step("autoencoder", part, seeded(step))
    assert logs["reconstruction"] > first + 20
    assert logs["code_perplexity"] > 10
    wrong = (model.reconstruct(x) - x.float()).square().mean()
    assert wrong < 0.9 * x.float().var(0, unbiased=False).mean(), "better than the mean picture"

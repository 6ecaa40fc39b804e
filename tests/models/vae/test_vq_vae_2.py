"""VQ-VAE-2: the masks of both priors, its bound against the enumeration of both levels, and the use of both books."""

import itertools

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.autoregressive.attention import AttentionBlock
from dgmbench.models.vae.vq_vae_2 import VqVae2

SPEC = DataSpec((1, 3, 4), "binary")
EIGHT = DataSpec((1, 8, 8), "discrete", levels=17)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def images(n: int = 30, spec: DataSpec = SPEC) -> Tensor:
    return torch.randint(spec.levels or 2, (n, *spec.shape), generator=seeded(3)).byte()


def make(spec: DataSpec = SPEC, **settings: object) -> VqVae2:
    torch.manual_seed(1)
    small = {"codes": 2, "code_dim": 2, "channels": 8, "halvings": 1, "blocks": 1, "prior_features": 8, "heads": 2}
    model = VqVae2(spec, **{**small, "prior_blocks": 2, "prior_kernel": 3, **settings}).double()  # type: ignore[arg-type]
    model.initialise(Batch(images(spec=spec)), seeded())
    return model


@torch.no_grad()
def test_the_bound_is_one_term_of_the_sum_over_both_levels_and_the_priors_sum_to_1() -> None:
    """1 x 1 top and 2 x 2 bottom codes of two entries: 32 pairs of maps."""
    model, x = make(), images(8)
    every = torch.tensor(list(itertools.product(range(2), repeat=5)))
    names = {"top": every[:, :1].view(-1, 1, 1), "bottom": every[:, 1:].view(-1, 2, 2)}
    log_p = model.log_prior(names)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
    codes = {name: model.quantiser(name).book[index].movedim(-1, 1) for name, index in names.items()}
    parameters = model.observed(codes).unflatten(1, (1, -1))
    terms = log_p[:, None] + model.observation.log_prob(parameters[:, None], x)
    own = model.code_maps(x)
    number = (torch.cat([own["top"].flatten(1), own["bottom"].flatten(1)], 1) * torch.tensor([16, 8, 4, 2, 1])).sum(1)
    torch.testing.assert_close(model.elbo(x), terms[number, torch.arange(8)])
    assert (model.elbo(x) < terms.logsumexp(0)).all()


@torch.no_grad()
def test_the_top_prior_attends_to_the_past_alone_and_the_bottom_one_sees_all_of_the_top() -> None:
    model = make(EIGHT, codes=5)
    top, bottom = model._priors()
    upper = torch.randint(5, (1, 2, 2), generator=seeded())
    lower = torch.randint(5, (1, 4, 4), generator=seeded(1))
    for prior, index, given in ((top, upper, None), (bottom, lower, model.given(upper))):
        places = index.numel()
        base = prior.logits(index, given).view(places, 5)
        for place in range(places):
            other = index.clone().view(-1)
            other[place] = (other[place] + 1) % 5
            moved = (prior.logits(other.view(index.shape), given).view(places, 5) - base).abs().amax(1) > 1e-12
            assert not moved[: place + 1].any()
            assert place == places - 1 or moved[place + 1 :].any()
            if prior is top:
                assert moved[place + 1 :].all(), "attention reaches every later place"
    base = bottom.logits(lower, model.given(upper))
    for place in range(4):
        other = upper.clone().view(-1)
        other[place] = (other[place] + 1) % 5
        moved = (bottom.logits(lower, model.given(other.view(1, 2, 2))) - base).abs().amax((0, 3)) > 1e-12
        assert moved[:2, :2].any(), "also places above and to the left"


@torch.no_grad()
def test_attention_place_by_place_is_that_of_all_at_once() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(6, heads=3).double()
    h = torch.randn(4, 6, 3, 5, generator=seeded(), dtype=torch.float64)
    whole, cached = block(h, None), block.cached(4, 5, None)
    for row in range(3):
        cached.start_row()
        for x in range(5):
            torch.testing.assert_close(cached.step(x, 0, h[:, :, row, x]), whole[:, :, row, x])
    moved = h.clone()
    moved[:, :, 1, 2] += 1.0
    changed = ((block(moved, None) - whole).abs() > 1e-12).any(1)[0].flatten()
    assert not changed[:7].any()
    assert changed[7:].all()


@torch.no_grad()
def test_samples_follow_both_priors() -> None:
    model, n = make(), 20_000
    for weight in model.prior["given"].parameters():  # so that the bottom map depends on the top one visibly
        weight.mul_(5)
    every = torch.tensor(list(itertools.product(range(2), repeat=5)))
    p = model.log_prior({"top": every[:, :1].view(-1, 1, 1), "bottom": every[:, 1:].view(-1, 2, 2)}).exp()
    names = model.sample_names(n, seeded())
    number = (torch.cat([names["top"].flatten(1), names["bottom"].flatten(1)], 1) * torch.tensor([16, 8, 4, 2, 1])).sum(
        1
    )
    counts = torch.bincount(number, minlength=32)
    chi2 = ((counts - n * p).square() / (n * p)).sum().item()
    assert abs(chi2 - 31) < 4 * 62**0.5


def test_both_books_are_used() -> None:
    """On pictures of one of four shades (for the top) with one of four corners lit (for the bottom)."""
    g = seeded(5)
    x = (4 * torch.randint(4, (300, 1, 1, 1), generator=g)).expand(-1, 1, 8, 8).clone()
    for picture, corner in zip(x, torch.randint(4, (300,), generator=g), strict=True):
        picture[0, 4 * int(corner // 2) :][:4, 4 * int(corner % 2) :][:, :4] += 4
    batch = Batch(x.byte())
    model = make(EIGHT, codes=8, code_dim=4).float()
    model.initialise(batch, seeded())
    optimiser = torch.optim.Adam(model.players()["autoencoder"], 3e-3)
    for step in range(30):
        loss, logs = model.loss("autoencoder", batch, seeded(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.after_step("autoencoder", batch, seeded(step))
    assert logs["top_perplexity"] > 2
    assert logs["bottom_perplexity"] > 2
    codes = model.encode(batch.x).split([4 * 4, 4 * 16], 1)
    with torch.no_grad():
        base = model.reconstruct(batch.x)
        for level in range(2):
            mixed = [
                part[torch.randperm(300, generator=seeded(9))] if i == level else part for i, part in enumerate(codes)
            ]
            assert (model.decode(torch.cat(mixed, 1)) - base).abs().mean() > 1e-4, "the decoder listens to both"


def test_bad_settings_end_in_a_sentence() -> None:
    with pytest.raises(UserError, match="8 features of a prior cannot be shared out among 3 heads"):
        make(heads=3)
    with pytest.raises(UserError, match="takes images"):
        VqVae2(DataSpec((4,), "real"))


@torch.no_grad()
def test_pictures_show_each_level_alone_and_its_codes_ranked_by_nearness() -> None:
    model, x = make(EIGHT, codes=5), images(6, EIGHT)
    order = torch.tensor([3, 0, 4, 1, 2])
    for name in ("top", "bottom"):  # on a line among the vectors, in another order than their names
        along, across = model._levels(x)[name].vectors.movedim(1, 0).flatten(1)
        line = along.quantile(torch.linspace(0.1, 0.9, 5, dtype=torch.float64))
        model.quantiser(name).book.copy_(torch.stack([line[order], across.mean().expand(5)], 1))
    panels = model.panels(Batch(x))
    assert panels.shape == (6, 6, 1, 8, 8)
    torch.testing.assert_close(panels[:, 0], x.double())
    torch.testing.assert_close(panels[:, 1], model.reconstruct(x))
    names = model.code_maps(x)
    codes = {name: model.quantiser(name).lookup(index) for name, index in names.items()}
    for place, kept, left in ((2, "top", "bottom"), (3, "bottom", "top")):
        away = {**codes, left: codes[left].mean((0, 2, 3), keepdim=True).expand_as(codes[left])}
        code = torch.cat([away[name].flatten(1) for name in names], 1)
        torch.testing.assert_close(panels[:, place], model.decode(code))
        assert (panels[:, place] != panels[:, 1]).any(), kept
    for place, name in ((4, "top"), (5, "bottom")):
        side = names[name].shape[1]
        greys = panels[:, place, 0, :: 8 // side, :: 8 // side]
        assert len(names[name].unique()) > 2
        rank = order[names[name]] / 4.0
        low, high = float(x.min()), float(x.max())
        ends = [low + (high - low) * each for each in (rank, 1 - rank)]  # a direction has no sign
        assert any(torch.allclose(greys, end.double()) for end in ends)

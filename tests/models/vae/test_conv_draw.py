"""Convolutional DRAW: its path unrolled by hand, its bounds, and compression with a part of the codes stored."""

import math

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import Normal, kl_divergence

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.vae.conv_draw import ConvDraw, ConvLstm

SPEC = DataSpec((1, 3, 4), "discrete", levels=5)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(spec: DataSpec = SPEC, **settings: int) -> ConvDraw:
    torch.manual_seed(1)
    model = ConvDraw(spec, **{"steps": 3, "hidden": 5, "latent": 2, **settings}).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=seeded(2), dtype=p.dtype))
    return model


def images(n: int = 5) -> Tensor:
    return torch.randint(5, (n, *SPEC.shape), generator=seeded(3)).byte()


@torch.no_grad()
def test_the_recurrent_network_is_an_lstm() -> None:
    """On maps of one pixel it is torch's cell, whose forget gate has one added to its bias."""
    torch.manual_seed(0)
    ours, theirs = ConvLstm(3, 4).double(), torch.nn.LSTMCell(3, 4).double()
    weight = ours.gates.weight[:, :, 1, 1].view(4, 4, 7)[[0, 1, 3, 2]].flatten(0, 1)  # torch: i, f, g, o
    bias = ours.gates.bias.view(4, 4)[[0, 1, 3, 2]].clone()
    bias[1] += 1
    theirs.weight_ih.copy_(weight[:, :3])
    theirs.weight_hh.copy_(weight[:, 3:])
    theirs.bias_ih.copy_(bias.flatten())
    theirs.bias_hh.zero_()
    x, h, c = (torch.randn(6, n, generator=seeded(n), dtype=torch.float64) for n in (3, 4, 4))
    found = ours(x[..., None, None], (h[..., None, None], c[..., None, None]))
    for a, b in zip(found, theirs(x, (h, c)), strict=True):
        torch.testing.assert_close(a[..., 0, 0], b)


@torch.no_grad()
def test_the_path_and_the_loss_are_those_of_the_equations() -> None:
    model, x = make(), images()
    noise, target = seeded(9), x.double() * 0.5 - 1
    h_dec, c_dec, h_enc, c_enc = (each.expand(5, -1, 2, 2) for each in model.first)
    canvas, kl = model.start.expand(5, 1, 3, 4), torch.zeros(5, dtype=torch.float64)
    for _ in range(3):
        mean, log_variance = model.prior(h_dec).chunk(2, 1)
        p = Normal(mean, (0.5 * log_variance).exp())
        looked = model.look(torch.cat([target, target - canvas], 1))
        h_enc, c_enc = model.encoder(torch.cat([looked, h_dec], 1), (h_enc, c_enc))
        mean, log_variance = model.posterior(h_enc).chunk(2, 1)
        q = Normal(mean, (0.5 * log_variance).exp())
        z = mean + q.scale * torch.randn(mean.shape, generator=noise, dtype=torch.float64)
        kl += kl_divergence(q, p).sum((1, 2, 3))
        h_dec, c_dec = model.decoder(torch.cat([z, model.seen(canvas)], 1), (h_dec, c_dec))
        canvas = canvas + model.write(h_dec)
    of_x = model.observation.log_prob(torch.stack([canvas, model.spread(h_dec)], 1), x)
    torch.testing.assert_close(model.elbo(x, generator=seeded(9)), of_x - kl)
    loss, logs = model.loss("model", Batch(x), seeded(9))
    assert loss.item() == pytest.approx((kl - of_x).mean().item())
    assert logs["kl"].item() == pytest.approx(kl.mean().item())


@torch.no_grad()
def test_the_elbo_is_the_mean_log_weight_and_lies_below_the_importance_weighted_bound() -> None:
    model, x, n = make(), images(3), 600
    elbo = model.elbo(x.repeat(n, 1, 1, 1), generator=seeded()).view(n, 3)
    log_w = model.log_weights(x, 8 * n, generator=seeded(1)).view(8, n, 3)
    tight = log_w.logsumexp(0) - math.log(8)
    error = (elbo.var(0) / n + log_w.var((0, 1)) / (8 * n)).sqrt()
    assert ((elbo.mean(0) - log_w.mean((0, 1))).abs() < 4 * error).all()
    assert (tight.mean(0) - elbo.mean(0) > 4 * ((elbo.var(0) + tight.var(0)) / n).sqrt()).all()


@torch.no_grad()
def test_the_code_length_is_the_sum_of_the_stored_steps() -> None:
    model, x = make(), images()
    path = model.infer(x, 1, seeded(4))
    each = []
    for step in path:
        assert step.posterior is not None
        q, p = (Normal(of.mean, of.log_sigma.exp()) for of in (step.posterior, step.prior))
        each.append(kl_divergence(q, p).sum((1, 2, 3)))
    for stored in range(4):
        mean, nats = model.compress(x, stored, generator=seeded(4))
        torch.testing.assert_close(nats, sum(each[:stored], torch.zeros(5, dtype=torch.float64)))
        assert mean.shape == x.shape
    torch.testing.assert_close(mean, model.reconstruct(x, generator=seeded(4)))
    nothing, _ = model.compress(x, 0, generator=seeded(4))
    torch.testing.assert_close(nothing, model.compress(images(9)[4:], 0, generator=seeded(4))[0])  # x is not seen


@torch.no_grad()
def test_noise_and_codes_are_two_names_of_one_path() -> None:
    model, x = make(), images()
    noise = torch.randn(5, model.noise_dim, generator=seeded(7), dtype=torch.float64)
    last = model._of_noise(noise)[-1]
    torch.testing.assert_close(model.log_prob_given(x, noise), model.observation.log_prob(model._observed(last), x))
    path = model.infer(x, 1, mean=True)
    torch.testing.assert_close(model.decode(model.encode(x)), model._mean(path[-1]))


def test_the_error_falls_as_more_codes_are_stored() -> None:
    """On pictures of one shade with one darker or lighter corner."""
    g = seeded(5)
    x = (8 * torch.randint(1, 4, (200, 1, 1, 1), generator=g)).expand(-1, 1, 6, 6).clone()
    for picture, corner in zip(x, torch.randint(4, (200,), generator=g), strict=True):
        picture[0, 3 * int(corner // 2) :][:3, 3 * int(corner % 2) :][:, :3] -= 8
    spec = DataSpec((1, 6, 6), "discrete", levels=32)
    torch.manual_seed(0)
    model = ConvDraw(spec, steps=4, hidden=12, latent=2)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(100):
        batch = x[torch.randint(len(x), (50,), generator=seeded(step))].byte()
        loss, _ = model.loss("model", Batch(batch), seeded(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    errors, lengths = [], []
    with torch.no_grad():
        for stored in (0, 1, 2, 4):
            mean, nats = model.compress(x.byte(), stored, generator=seeded(9))
            errors.append((mean - x).square().mean().item())
            lengths.append(nats.mean().item())
    assert errors == sorted(errors, reverse=True), errors
    assert errors[-1] < 0.5 * errors[0], errors
    assert lengths == sorted(lengths)


def test_bad_settings_end_in_a_sentence() -> None:
    with pytest.raises(UserError, match="conv_draw takes images"):
        ConvDraw(DataSpec((4,), "real"))
    with pytest.raises(UserError, match=r"compress\.stored=4"):
        make().compress(images(), 4)
    with pytest.raises(UserError, match="steps=0"):
        make(steps=0)


def test_pictures_show_what_more_and_more_codes_keep_and_how_samples_come_about() -> None:
    model, x = make(), images()
    panels = model.panels(Batch(x), generator=seeded(4))
    assert panels.shape == (5, 5, 1, 3, 4)
    torch.testing.assert_close(panels[:, 0], x.double())
    g = seeded(4)
    with torch.no_grad():
        for stored in range(4):
            torch.testing.assert_close(panels[:, 1 + stored], model.compress(x, stored, generator=g)[0])
    grown = model.growth(6, generator=seeded(4))
    assert grown.shape == (6, 4, 1, 3, 4)
    assert (grown[:, -1] == grown[:, -1].round()).all()
    noise = torch.randn(6, model.noise_dim, generator=seeded(4))
    torch.testing.assert_close(grown[:, -2], model._mean(model._of_noise(noise)[-1]).detach())

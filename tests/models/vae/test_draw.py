"""DRAW: its path unrolled by hand, its bound against importance weights, and its window on digits at known places."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from dgmbench.config import compose, resolve
from dgmbench.data import load
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.vae.draw import Draw
from dgmbench.nn.regions import framed
from dgmbench.nn.windows import window

SPEC = DataSpec((1, 4, 3), "binary")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(spec: DataSpec = SPEC, **settings: object) -> Draw:
    torch.manual_seed(1)
    model = Draw(spec, **{"steps": 3, "hidden": 6, "latent": 2, "read": 2, "write": 3, **settings}).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=seeded(2), dtype=p.dtype))
    return model


def images(n: int = 5, spec: DataSpec = SPEC) -> Tensor:
    return torch.randint(2, (n, *spec.shape), generator=seeded(3)).byte()


@pytest.mark.parametrize("attention", [True, False])
@torch.no_grad()
def test_the_path_and_the_loss_are_those_of_the_equations(attention: bool) -> None:
    model, x = make(attention=attention), images()
    noise, target = seeded(9), x.double()
    h_dec, c_dec, h_enc, c_enc = (row.expand(5, -1) for row in model.first)
    canvas, kl = model.start.expand(5, 1, 4, 3), torch.zeros(5, dtype=torch.float64)
    for _ in range(3):
        error = target - canvas.sigmoid()
        if attention:
            at = window(model.windows[0](h_dec), 2, 4, 3)
            seen = torch.cat([at.read(target).flatten(1), at.read(error).flatten(1)], 1)
        else:
            seen = torch.cat([target.flatten(1), error.flatten(1)], 1)
        h_enc, c_enc = model.encoder(torch.cat([seen, h_dec], 1), (h_enc, c_enc))
        mean, log_variance = model.code(h_enc).chunk(2, 1)
        q = Normal(mean, (0.5 * log_variance).exp())
        z = mean + q.scale * torch.randn(5, 2, generator=noise, dtype=torch.float64)
        kl += kl_divergence(q, Normal(0.0, 1.0)).sum(1)
        h_dec, c_dec = model.decoder(z, (h_dec, c_dec))
        patch = model.patch(h_dec)
        if attention:
            canvas = canvas + window(model.windows[1](h_dec), 3, 4, 3).write(patch.view(5, 1, 3, 3))
        else:
            canvas = canvas + patch.view(5, 1, 4, 3)
    reconstruction = Bernoulli(logits=canvas).log_prob(target).sum((1, 2, 3))
    torch.testing.assert_close(model.elbo(x, generator=seeded(9)), reconstruction - kl)
    loss, logs = model.loss("model", Batch(x), seeded(9))
    assert loss.item() == pytest.approx((kl - reconstruction).mean().item())
    assert logs["kl"].item() == pytest.approx(kl.mean().item())


@torch.no_grad()
def test_the_elbo_is_the_mean_log_weight_and_lies_below_the_importance_weighted_bound() -> None:
    model, x = make(), images(3)
    n = 1_500
    elbo = model.elbo(x.repeat(n, 1, 1, 1), generator=seeded()).view(n, 3)
    log_w = model.log_weights(x, 16 * n, generator=seeded(1)).view(16, n, 3)
    tight = log_w.logsumexp(0) - math.log(16)
    error = (elbo.var(0) / n + log_w.var((0, 1)) / (16 * n)).sqrt()
    assert ((elbo.mean(0) - log_w.mean((0, 1))).abs() < 4 * error).all()
    assert (tight.mean(0) - elbo.mean(0) > 4 * ((elbo.var(0) + tight.var(0)) / n).sqrt()).all()


@torch.no_grad()
def test_codes_of_all_steps_make_the_picture_that_was_inferred() -> None:
    model, x = make(), images()
    strokes = model.infer(x, 2, seeded())
    again = model.drawn(torch.stack([stroke.z for stroke in strokes], 1))
    for a, b in zip(strokes, again, strict=True):
        torch.testing.assert_close(a.canvas, b.canvas)
    codes = model.encode(x)
    assert codes.shape == (5, 6)
    torch.testing.assert_close(model.decode(codes), model.infer(x, 1, mean=True)[-1].canvas.sigmoid())
    of_x = Bernoulli(model.decode(codes)).log_prob(x.double()).sum((1, 2, 3))
    torch.testing.assert_close(model.log_prob_given(x, codes), of_x)


def test_the_window_follows_the_digit(tmp_path: Path) -> None:
    data = load(resolve(compose("train", ["model=draw"]))["data"], tmp_path)
    train, test = (torch.as_tensor(data.splits[split].x) for split in ("train", "test"))
    torch.manual_seed(0)
    model = Draw(data.spec, steps=4, hidden=32, latent=6, read=5, write=5)
    model.initialise(Batch(train), seeded())
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    bounds = []
    for step in range(110):
        batch = Batch(train[torch.randint(len(train), (50,), generator=seeded(step))])
        loss, logs = model.loss("model", batch, seeded(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        bounds.append(logs["elbo"].item())
    assert np.mean(bounds[-20:]) > np.mean(bounds[:5]) + 10
    with torch.no_grad():
        strokes = model.infer(test, 1, seeded())
    _, row, column = np.unravel_index(data.splits["test"].y, (10, 9, 9))
    write = torch.stack([stroke.write.centre for stroke in strokes if stroke.write is not None]).mean(0).numpy()
    for found, true in ((write[:, 0], column), (write[:, 1], row)):
        correlation = np.corrcoef(found, true)[0, 1]
        assert abs(correlation) > 3 / math.sqrt(len(test)), correlation


def test_bad_settings_end_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"window of model\.read=2 or model\.write=5 places is wider than the pictures"):
        make(write=5)
    with pytest.raises(UserError, match="takes binary images"):
        make(DataSpec((1, 4, 4), "discrete", levels=3))
    with pytest.raises(UserError, match="steps=0"):
        make(steps=0)
    with pytest.raises(UserError, match="read=1"):
        make(read=1)


@pytest.mark.parametrize("attention", [True, False])
def test_pictures_show_the_canvas_as_it_is_drawn_in_frames_of_the_windows(attention: bool) -> None:
    model, x = make(attention=attention), images()
    panels = model.panels(Batch(x), generator=seeded(4))
    assert panels.shape == (5, 4, 1, 4, 3)
    torch.testing.assert_close(panels[:, 0], x.double())
    with torch.no_grad():
        strokes = model.infer(x, 1, seeded(4))
    for shown, stroke in zip(panels[:, 1:].unbind(1), strokes, strict=True):
        canvas = stroke.canvas.sigmoid()
        if stroke.write is not None:
            assert (shown != canvas).any()
            canvas = framed(canvas, stroke.write.inside(), 0.5)
        torch.testing.assert_close(shown, canvas)
    grown = model.growth(6, generator=seeded(4))
    assert grown.shape == (6, 4, 1, 4, 3)
    assert ((grown[:, -1] == 0) | (grown[:, -1] == 1)).all()
    assert not torch.equal(grown[:, 0], grown[:, 2])


def test_of_many_strokes_ten_are_shown_and_the_last_is_one_of_them() -> None:
    model, x = make(steps=23, attention=False), images()
    panels = model.panels(Batch(x), generator=seeded(4))
    assert panels.shape[1] == 11
    torch.testing.assert_close(panels[:, -1], model.reconstruct(x, generator=seeded(4)).detach())

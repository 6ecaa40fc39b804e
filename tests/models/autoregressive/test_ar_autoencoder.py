"""The autoencoder of sentences: codes, what its numbers are, and what a code is worth."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dgmbench.data import load
from dgmbench.data.grammar import ENGLISH
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.data.text import decode_tokens
from dgmbench.errors import UserError
from dgmbench.models.autoregressive.ar_autoencoder import ArAutoencoder, UnconditionalDecoder
from dgmbench.models.contract import HasLogProb, HasReconstructionLogProb
from dgmbench.nn.sequences import counted

from ...fitting import fit_by_adam

SPEC = DataSpec((6,), "tokens", 5, end=0)
SMALL = {"width": 6, "hidden": 9, "latent": 4}
CONFIG = Path(__file__).parents[3] / "configs" / "data" / "text_small.yaml"


def sentences(n, seed=0):
    """Random sentences of every length."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(1, 5, (n, 6), generator=g)
    return x.masked_fill(torch.arange(6) >= torch.randint(0, 7, (n, 1), generator=g), 0)


def test_the_code_sees_the_sentence_and_nothing_after_its_end():
    torch.manual_seed(0)
    model = ArAutoencoder(SPEC, **SMALL).double()
    x = sentences(40)
    code = model.encode(x)
    assert code.shape == (40, 4)
    for row in range(0, 40, 7):  # alone, so with no longer sentence beside it
        assert torch.allclose(model.encode(x[row : row + 1]), code[row : row + 1])
    # the state after a sentence's own tokens, one after another
    length = int((x[3] != 0).sum()) + 1
    state = torch.zeros(1, 1, 9, dtype=torch.float64)
    for token in x[3][: min(length, 6)]:
        _, state = model.reader.gru(model.reader.embedding(token.reshape(1, 1)), state)
    assert torch.allclose(model.reader.top(state[0]), code[3:4])
    kept = counted(x, 0)
    for t in range(6):
        moved = x.clone()
        moved[:, t] = torch.where(kept[:, t] & (x[:, t] != 0), 1 + x[:, t] % 4, x[:, t])
        changed = (model.encode(moved) - code).abs().amax(1) > 0
        assert torch.equal(changed, kept[:, t] & (x[:, t] != 0))


def test_its_numbers_are_no_likelihood_and_it_does_not_claim_one():
    """Over all x, exp log p(x | c(x)) sums to more than 1: the code has seen x."""
    spec = DataSpec((3,), "tokens", 4, end=0)
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    every = every[~((every == 0).int().diff(dim=1) < 0).any(1)]
    torch.manual_seed(0)
    model = fit_by_adam(ArAutoencoder(spec, **SMALL), every, 80, lr=2e-2)
    assert model.reconstruction_log_prob(every).exp().sum() > 2
    assert isinstance(model, HasReconstructionLogProb)
    assert not isinstance(model, HasLogProb)
    fixed = model.decoder.log_prob(every, model.encode(every[:1]).expand(len(every), -1))
    assert fixed.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    assert isinstance(UnconditionalDecoder(spec), HasLogProb)
    assert UnconditionalDecoder(spec).log_prob(every).exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_moments_of_the_codes_follow_the_batches():
    """A running mean and covariance, equal to those of all codes with geometric weights."""
    torch.manual_seed(0)
    model, decay = ArAutoencoder(SPEC, **SMALL, decay=0.8).double(), 0.8
    batches = [sentences(30, seed) for seed in range(12)]
    for x in batches:
        model.after_step("model", Batch(x), torch.Generator())
    weights = [decay**12] + [(1 - decay) * decay ** (11 - i) for i in range(12)]
    assert sum(weights) == pytest.approx(1.0)
    with torch.no_grad():
        encoded = [model.encode(x) for x in batches]
    mean = sum(w * c.mean(0) for w, c in zip(weights[1:], encoded, strict=True))
    square = weights[0] * torch.eye(4).double() + sum(
        w * c.T @ c / len(c) for w, c in zip(weights[1:], encoded, strict=True)
    )
    assert torch.allclose(model.code_mean, mean)
    assert torch.allclose(model.code_covariance, square - torch.outer(mean, mean), atol=1e-6)


def test_samples_use_codes_of_these_moments():
    torch.manual_seed(0)
    model = ArAutoencoder(SPEC, **SMALL).double()
    root = torch.randn(4, 4).double()
    model.code_mean.copy_(torch.arange(4.0))
    model.code_covariance.copy_(root @ root.T)
    code = model.sample_codes(20_000, generator=torch.Generator().manual_seed(0))
    error = code.std(0) / 20_000**0.5
    assert ((code.mean(0) - model.code_mean).abs() < 4.5 * error).all()
    # the standard error of a sample covariance of Gaussians
    c = model.code_covariance
    spread = ((c**2 + torch.outer(c.diag(), c.diag())) / 20_000).sqrt()
    assert ((torch.cov(code.T) - c).abs() < 4.5 * spread).all()
    g = torch.Generator().manual_seed(3)
    codes = model.sample_codes(50, generator=g)
    assert torch.equal(
        model.decoder.sample(50, codes, generator=g), model.sample(50, generator=torch.Generator().manual_seed(3))
    )


@pytest.fixture(scope="module")
def text():
    data = load({**yaml.safe_load(CONFIG.read_text()), "train": 2000, "valid": 200, "test": 200}, Path("/nonexistent"))
    return data.spec, torch.from_numpy(data.splits["train"].x), torch.from_numpy(data.splits["test"].x)


def test_a_code_is_worth_much_on_held_out_sentences(text):
    """Held-out NLL per token: the decoder given the sentence's code below the decoder alone, which approaches the
    grammar's entropy from above.
    """
    spec, train, test = text
    torch.manual_seed(0)
    with_code = fit_by_adam(ArAutoencoder(spec, width=32, hidden=64, latent=16), train, 150)
    alone = fit_by_adam(UnconditionalDecoder(spec, width=32, hidden=64), train, 150)
    tokens = counted(test, 0).sum()
    with torch.no_grad():
        given, baseline = -with_code.reconstruction_log_prob(test), -alone.log_prob(test)
        assert given.sum() / tokens < 0.8 * baseline.sum() / tokens
        words = [line.split() for line in decode_tokens(test.numpy(), spec)]
        excess = baseline.numpy() + np.array([ENGLISH.log_prob(w) for w in words])
        assert excess.mean() > -4 * excess.std() / len(excess) ** 0.5, "no likelihood beats the grammar's own"
        assert excess.mean() < 6
        wide = ArAutoencoder(spec, width=32, hidden=64, latent=16, beam=4)
        wide.load_state_dict(with_code.state_dict())
        code = with_code.encode(test)
        scores = [m.decoder.log_prob(m.reconstruct(test), code).mean() for m in (with_code, wide)]
        assert scores[1] >= scores[0]
        assert wide.reconstruct(test).dtype == torch.int64


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match=r"takes sequences of tokens \(t,\), not binary 5"):
        ArAutoencoder(DataSpec((5,), "binary"))
    with pytest.raises(UserError, match=r"model\.latent=0 must be at least 1"):
        ArAutoencoder(SPEC, latent=0)
    with pytest.raises(UserError, match=r"model\.beam=0 must be at least 1"):
        ArAutoencoder(SPEC, beam=0)
    with pytest.raises(UserError, match=r"model\.decay=1\.0 must be at least 0 and less than 1"):
        ArAutoencoder(SPEC, decay=1.0)

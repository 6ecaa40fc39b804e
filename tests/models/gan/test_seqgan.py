"""SeqGAN on all 27 sequences of three tokens: gradients, rollouts, rewards and what an oracle says, by enumeration."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dgmbench.data.oracle_text import OracleText
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.seqgan import SeqGan
from dgmbench.nn.sentence_convolutions import SentenceConvolutions

from .alphabet import seeded

THREE = DataSpec((3,), "tokens", 3)
EVERY = torch.tensor(list(itertools.product(range(3), repeat=3)))


def made(spec: DataSpec = THREE, **arguments: Any) -> SeqGan:
    """A small model with decided opinions, in double precision."""
    torch.manual_seed(0)
    small = {"width": 3, "hidden": 4, "critic_width": 3, "kernels": (1, 2), "channels": 4, "dropout": 0.0}
    model = SeqGan(spec, **{**small, **arguments}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def flat(model: SeqGan) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.generator.parameters() if p.grad is not None])


def enumerated(model: SeqGan) -> Tensor:
    """Q_t = E[D(x) | x_<=t] of all 27 sequences, (27, 3), by sums over their ends."""
    with torch.no_grad():
        p, d = model.log_prob(EVERY).exp(), model.verdict(EVERY)
    q = []
    for t in (1, 2, 3):
        same = (EVERY[:, None, :t] == EVERY[None, :, :t]).all(2).to(p)
        q.append((same @ (p * d)) / (same @ p))
    return torch.stack(q, 1)


def exact_gradient(model: SeqGan) -> Tensor:
    """Of -E_G D(x), by automatic differentiation of the sum over all sequences."""
    model.zero_grad()
    (-(model.log_prob(EVERY).exp() * model.verdict(EVERY)).sum()).backward()
    return flat(model)


def test_the_policys_gradient_is_exact_when_all_sequences_are_counted() -> None:
    """sum_x G(x) sum_t grad log G(x_t | x_<t) (Q_t - Q_{t-1}) is the gradient of E_G D(x), whatever Q_0 is."""
    model = made()
    wanted, q = exact_gradient(model), enumerated(model)
    p = model.log_prob(EVERY).exp().detach()
    model.zero_grad()
    before = torch.cat([torch.full((27, 1), 0.3, dtype=q.dtype), q[:, :-1]], 1)
    (-(p[:, None] * model.generator.each_log_prob(EVERY) * (q - before)).sum()).backward()
    torch.testing.assert_close(flat(model), wanted, rtol=1e-8, atol=1e-12)
    assert wanted.abs().max() > 1e-2
    kept = model.advantages(q)
    torch.testing.assert_close(kept[:, 1:], q[:, 1:] - q[:, :-1])
    assert float(kept[0, 0]) == pytest.approx(float(q[0, 0] - q[1:, 0].mean()))


def test_the_mean_of_reinforces_gradient_is_the_exact_one() -> None:
    """Of batches with two rollouts; every component, and all together, within what chance allows."""
    model, draws, g = made(rollouts=2), 60, seeded(1)
    wanted, batch = exact_gradient(model), Batch(EVERY[:1].expand(1000, 3))
    found = torch.empty(draws, len(wanted), dtype=torch.float64)
    for row in found:
        model.zero_grad()
        model.loss("policy", batch, g)[0].backward()
        row.copy_(flat(model))
    moves = found.std(0) > 0
    assert (wanted[~moves] == 0).all()
    z = (found.mean(0) - wanted)[moves] / (found.std(0)[moves] / draws**0.5)
    assert z.abs().max() < 4.5
    along = found @ wanted / (wanted @ wanted)  # 1 on average, and sharply so
    error = float(along.std()) / draws**0.5
    assert error < 0.05
    assert abs(float(along.mean()) - 1) < 4 * error


def test_rollouts_tend_to_the_enumerated_value_and_the_last_reward_is_the_discriminators() -> None:
    model = made(rollouts=4000)
    q, found = enumerated(model), model.rewards(EVERY, seeded(2))
    with torch.no_grad():
        p, d = model.log_prob(EVERY).exp(), model.verdict(EVERY)
    torch.testing.assert_close(found[:, 2], d, rtol=0, atol=0)
    for t in (1, 2):
        same = (EVERY[:, None, :t] == EVERY[None, :, :t]).all(2).to(p)
        spread = ((same @ (p * d**2)) / (same @ p) - q[:, t - 1] ** 2).clamp(min=0).sqrt()
        assert (spread > 1e-3).all()
        assert ((found - q)[:, t - 1].abs() < 4.5 * spread / 4000**0.5).all()


def test_rollouts_keep_their_beginning_and_draw_the_rest_from_the_policy() -> None:
    model = made()
    rows = model.generator.finished(EVERY, 3000, generator=seeded(3))
    assert rows.shape == (2, 3000, 27, 3)
    p = model.log_prob(EVERY).exp().detach().view(3, 3, 3)
    for k in range(2):
        assert (rows[k, :, :, : k + 1] == EVERY[:, : k + 1]).all()
    pairs = F.one_hot(3 * rows[0, :, ::9, 1] + rows[0, :, ::9, 2], 9).double().mean(0).view(3, 3, 3)
    wanted = p / p.sum((1, 2), keepdim=True)
    assert ((pairs - wanted).abs() < 4.5 * (wanted * (1 - wanted) / 3000).sqrt()).all()


def test_what_has_ended_stays_so_and_is_worth_what_the_discriminator_says() -> None:
    model = made(DataSpec((3,), "tokens", 3, end=0), rollouts=5)
    x = torch.tensor([[0, 0, 0], [1, 0, 0], [2, 1, 0]])
    rewards, d = model.rewards(x, seeded(4)), model.verdict(x).detach()
    torch.testing.assert_close(rewards[0], d[:1].expand(3))
    torch.testing.assert_close(rewards[1, 1:], d[1:2].expand(2))
    assert not torch.isclose(rewards[2, 0], d[2])
    assert float(model.log_prob(EVERY).detach().exp().sum()) == pytest.approx(1)  # what is said behind an end has none


def test_the_policys_loss_by_hand_leaves_out_what_is_behind_an_end() -> None:
    model, g = made(DataSpec((3,), "tokens", 3, end=0), rollouts=5), seeded(5)
    drawn = model.sample(6, generator=g)
    behind = ((drawn == 0).cumsum(1) - (drawn == 0).long()) > 0
    assert behind.any()
    assert not behind.all(0).any()
    q = model.rewards(drawn, g)
    before = torch.cat([(q[:, :1].sum() - q[:, :1]) / 5, q[:, :-1]], 1)
    each = model.generator.each_log_prob(drawn).masked_fill(behind, 0)
    loss, _ = model.loss("policy", Batch(drawn), seeded(5))
    assert loss.item() == pytest.approx(-(each * (q - before)).sum(1).mean().item())


def test_losses_by_hand_and_whom_they_reach() -> None:
    model, x = made(), EVERY[[0, 5, 5, 13, 26]]
    likelihood = model.loss("generator", Batch(x), seeded())[0]
    assert likelihood.item() == pytest.approx(-model.log_prob(x).mean().item())
    drawn = model.sample(5, generator=seeded(6))
    loss = model.loss("discriminator", Batch(x), seeded(6))[0]
    real, fake = model.verdict(x), model.verdict(drawn)
    assert loss.item() == pytest.approx((-real.log().mean() - (1 - fake).log().mean()).item())
    loss.backward()
    assert all(p.grad is None for p in model.generator.parameters())
    model.zero_grad()
    model.loss("policy", Batch(x), seeded(7))[0].backward()
    assert all(p.grad is None for p in model.discriminator.parameters())


def test_the_discriminator_by_hand_and_dropout_for_its_own_loss_alone() -> None:
    net = SentenceConvolutions(3, 3, width=2, kernels=(2,), channels=3, dropout=0.5)
    e = net.embedding.weight[EVERY]
    (conv,) = net.convs
    windows = torch.stack([e[:, :2], e[:, 1:]], 1)  # (27, places, 2 tokens, width)
    h = F.relu(torch.einsum("bpkw,cwk->bpc", windows, conv.weight) + conv.bias).amax(1)
    gate = torch.sigmoid(h @ net.gate.weight.T + net.gate.bias)
    h = gate * F.relu(h @ net.change.weight.T + net.change.bias) + (1 - gate) * h
    wanted = (h @ net.top.weight.T + net.top.bias)[:, 0]
    torch.testing.assert_close(net(EVERY, noisy=False), wanted)
    assert not torch.equal(net.train()(EVERY), net(EVERY))
    torch.testing.assert_close(net.eval()(EVERY), wanted)


def test_a_table_of_pairs_adds_its_numbers_to_the_convolutions() -> None:
    net = SentenceConvolutions(3, 3, width=2, kernels=(1,), channels=2, dropout=0.0, pairs=True)
    plain = net(EVERY)
    with torch.no_grad():
        net.table.copy_(torch.randn(3, 3, generator=seeded(9)))
    added = torch.stack([net.table[a, b] + net.table[b, c] for a, b, c in EVERY])
    torch.testing.assert_close(net(EVERY), plain + added)
    groups = made(pairs=True).players()["discriminator"]
    assert [len(parameters) for parameters in groups.values()] == [11, 1]


def test_stages_and_turns() -> None:
    model = made(mle=0.5, discriminate=0.2, n_critic=3, game_batch=7)
    found = {stage.name: (stage.players, round(stage.share, 6), stage.batch_size) for stage in model.stages()}
    assert found == {
        "mle": (("generator",), 0.5, None),
        "discriminate": (("discriminator",), 0.2, None),
        "adversarial": (("discriminator", "policy"), 0.3, 7),
    }
    *_, last = model.stages()
    assert [len(model.turn(step, last)) for step in range(6)] == [1, 1, 2, 1, 1, 2]
    assert [stage.name for stage in made(mle=1.0, discriminate=0.0).stages()] == ["mle"]


def test_an_oracles_nll_is_the_enumerated_cross_entropy_and_both_directions_tell_a_collapse() -> None:
    oracle, model = OracleText(vocabulary=3, length=3, hidden=4), made()
    log_oracle = torch.from_numpy(oracle.log_prob(EVERY.numpy()))
    log_model = model.log_prob(EVERY).detach()
    cross, entropy = -(log_model.exp() * log_oracle).sum(), -(log_model.exp() * log_model).sum()
    drawn = model.sample(20_000, generator=seeded(8)).numpy()
    nll = -oracle.log_prob(drawn)
    assert abs(nll.mean() - float(cross)) < 4 * nll.std() / 20_000**0.5
    assert cross >= entropy
    with torch.no_grad():  # a generator that says the oracle's likeliest sequence, and little else
        likely = EVERY[log_oracle.argmax()]
    optimiser = torch.optim.Adam(model.generator.parameters(), lr=0.05)
    for _ in range(40):
        loss = model.loss("generator", Batch(likely[None]), seeded())[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    log_model = model.log_prob(EVERY).detach()
    of_oracle = float(-(log_oracle.exp() * log_oracle).sum())
    assert float(-(log_model.exp() * log_oracle).sum()) < of_oracle
    assert float(-(log_oracle.exp() * log_model).sum()) > 1.5 * of_oracle


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernels": (1, 4)}, r"model.kernels=\[1, 4\] must be widths from 1 to the 3 places"),
        ({"kernels": ()}, r"model.kernels=\[\] must be widths"),
        ({"mle": 0.0}, r"model.mle=0.0 and model.discriminate=0.2 must be shares"),
        ({"mle": 0.9}, r"model.mle=0.9 and model.discriminate=0.2 must be shares"),
        ({"rollouts": 0}, "model.rollouts=0 must be at least 1"),
        ({"dropout": 1.0}, "model.dropout=1.0 must be"),
    ],
)
def test_bad_input_is_explained(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**arguments)


def test_it_takes_sequences_of_tokens_only() -> None:
    with pytest.raises(UserError, match="This model takes sequences of tokens"):
        SeqGan(DataSpec((3,), "real"))

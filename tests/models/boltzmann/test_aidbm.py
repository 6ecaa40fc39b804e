"""A network that says where the mean field starts: it is trained to its end, and saves updates."""

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.boltzmann.dbm import Dbm


def seeded(seed=0):
    return Generator().manual_seed(seed)


def make(sizes=(6, 4, 3), scale=0.8, **args):
    args = {"pretraining": 0.0, "recognition": True, "tolerance": 1e-10, "mean_field_steps": 500} | args
    dbm = Dbm(DataSpec(sizes[:1], "binary"), hidden_sizes=sizes[1:], **args).double()
    g = seeded()
    with torch.no_grad():
        for p in dbm.overlaid().values():
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return dbm


def bits(n, size, seed=1):
    return torch.randint(2, (n, size), generator=seeded(seed)).to(torch.uint8)


@pytest.mark.parametrize("centring", ["none", "data"])
def test_it_starts_as_the_pass_upwards(centring):
    dbm = make(centring=centring)
    dbm.initialise(Batch(bits(50, 6)), seeded())
    with torch.no_grad():
        if centring == "data":
            dbm.move_offsets(torch.rand(13, generator=seeded(2), dtype=torch.float64), 1.0)
            dbm._start_recognition()
        v = bits(8, 6, seed=3).double()
        for n, mean in dbm.bottom_up(v).items():
            torch.testing.assert_close(dbm.start(v)[n], mean)


def test_the_end_is_a_target_and_no_path_of_gradients(states):
    dbm = make()
    with torch.no_grad():
        for p in dbm.recognition.parameters():
            p.copy_(torch.randn(p.shape, generator=seeded(2), dtype=torch.float64))
    v = states(6)
    (w1, w2), (_, b1, b2) = list(dbm.weights), list(dbm.biases)
    h1, h2 = torch.full((64, 4), 0.5, dtype=torch.float64), torch.full((64, 3), 0.5, dtype=torch.float64)
    with torch.no_grad():
        nu = [linear for linear in dbm.recognition]
        h1 = nu[0](v).sigmoid()
        h2 = nu[1](h1).sigmoid()
        for _ in range(500):
            h1 = (v @ w1 + h2 @ w2.T + b1).sigmoid()
            h2 = (h1 @ w2 + b2).sigmoid()
    first = nu[0](v)
    second = nu[1](first.sigmoid())
    losses = (F.binary_cross_entropy(first.sigmoid(), h1, reduction="sum"),
              F.binary_cross_entropy(second.sigmoid(), h2, reduction="sum"))  # fmt: skip
    expected = torch.autograd.grad(sum(losses) / 64, list(dbm.recognition.parameters()))
    loss, _ = dbm.loss("recognition", Batch(v), seeded())
    own = [*dbm.recognition.parameters(), *dbm.overlaid().values()]
    found = torch.autograd.grad(loss, own, allow_unused=True)
    for one, other in zip(found, expected, strict=False):
        torch.testing.assert_close(one, other)
    assert all(gradient is None for gradient in found[4:])


def updates_needed(dbm, v, start):
    """Updates until the bound is within 0.01 nats of its value at the end, the mean over examples."""
    end = dbm.machine().mean_field({0: v}, steps=500, start=start, tolerance=1e-10).free_energy
    needed = torch.full((len(v),), 40.0)
    for steps in reversed(range(40)):
        free = dbm.machine().mean_field({0: v}, steps=steps, start=start).free_energy
        needed[(free - end).abs() < 0.01] = steps
    return needed


def test_after_training_the_mean_field_needs_fewer_updates(states):
    dbm = make(sizes=(12, 10, 8), scale=0.6)
    x = bits(200, 12)
    dbm.initialise(Batch(x), seeded())
    optimizer = torch.optim.Adam(dbm.recognition.parameters(), lr=0.02)
    for _ in range(150):
        loss, _ = dbm.loss("recognition", Batch(x), seeded())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    v = bits(100, 12, seed=5).double()  # not among those trained on, all but a few
    with torch.no_grad():
        ours, plain = (updates_needed(dbm, v, start) for start in (dbm.start(v), dbm.bottom_up(v)))
    saved = plain - ours
    assert saved.mean() > 4 * saved.std() / 10


def test_the_bound_stays_below_log_p(states):
    dbm = make(mean_field_steps=3, tolerance=0.0)
    with torch.no_grad():
        for p in dbm.recognition.parameters():
            p.copy_(torch.randn(p.shape, generator=seeded(2), dtype=torch.float64))
        layers = states(13).split((6, 4, 3), 1)
        (w1, w2), biases = list(dbm.weights), list(dbm.biases)
        value = sum(x @ b for x, b in zip(layers, biases, strict=True))
        value = value + ((layers[0] @ w1) * layers[1]).sum(1) + ((layers[1] @ w2) * layers[2]).sum(1)
        log_p = value.view(64, -1).logsumexp(1)
        bound = dbm.elbo_unnormalised(states(6).to(torch.uint8))
    assert (bound <= log_p + 1e-9).all()
    assert (log_p - bound).max() > 1e-3


def test_both_players_learn_in_the_joint_stage():
    dbm = make(pretraining=0.2)
    assert [stage.players for stage in dbm.stages()] == [("rbm_1",), ("rbm_2",), ("model", "recognition")]
    assert "recognition" not in make(recognition=False).players()

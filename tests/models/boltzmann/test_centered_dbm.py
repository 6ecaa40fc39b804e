"""Centring: other coordinates of the same distribution, with the enhanced gradient and a rounder log Z."""

import pytest
import torch
from torch import Generator

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.boltzmann.dbm import Dbm
from dgmbench.models.boltzmann.estimators import PCD

SPEC = DataSpec((6,), "binary")
SIZES = (6, 4, 3)


def seeded(seed=0):
    return Generator().manual_seed(seed)


def make(scale=0.7, **args):
    args = {"pretraining": 0.0, "centring": "average", "tolerance": 1e-12, "mean_field_steps": 500} | args
    dbm = Dbm(SPEC, hidden_sizes=SIZES[1:], **args).double()
    g = seeded()
    with torch.no_grad():
        for p in dbm.overlaid().values():
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return dbm


def data(n=60, ones=0.6):
    g = seeded(1)
    which = torch.randint(2, (n, 1), generator=g)
    x = torch.where(torch.rand(n, 6, generator=g) < 0.2, 1 - which, which)
    return (x | (torch.rand(n, 6, generator=g) < ones)).to(torch.uint8)  # mostly ones: means far from 1/2


def minus_energy(biases, weights, offsets, layers):
    """The centred -E by its definition."""
    centred = [x - o for x, o in zip(layers, offsets.split(SIZES), strict=True)]
    value = sum(x @ bias for x, bias in zip(centred, biases, strict=True))
    return value + sum(((a @ w) * b).sum(1) for a, w, b in zip(centred[:-1], weights, centred[1:], strict=True))


def log_p(dbm, states):
    """Log p(v, h1, h2) of all states by enumeration, from the parameters in their own coordinates."""
    layers = states(sum(SIZES)).split(SIZES, 1)
    return minus_energy(list(dbm.biases), list(dbm.weights), dbm.offsets, layers).log_softmax(0).detach(), layers


def test_moving_the_offsets_leaves_the_distribution_as_it_is(states):
    dbm = make()
    before, layers = log_p(dbm, states)
    x = states(6)
    bound = dbm.elbo_unnormalised(x).detach() - dbm.annealing_path().exact_log_partition()
    for rate in (0.3, 1.0):
        to = torch.rand(sum(SIZES), generator=seeded(4), dtype=torch.float64)
        dbm.move_offsets(to, rate)
        after, _ = log_p(dbm, states)
        torch.testing.assert_close(after, before, rtol=0, atol=1e-10)
    torch.testing.assert_close(dbm.offsets, to)
    torch.testing.assert_close(dbm.elbo_unnormalised(x).detach() - dbm.annealing_path().exact_log_partition(), bound)
    machine = dbm.machine()  # and the machine that everything else works on is the same distribution
    value = sum(v @ layer.eta for v, layer in zip(layers, machine.layers, strict=True))
    value = value + sum(((layers[i] @ w) * layers[j]).sum(1) for (i, j), w in machine.weights.items())
    torch.testing.assert_close(value.log_softmax(0).detach(), before, rtol=0, atol=1e-10)


def test_the_gradient_at_average_offsets_is_the_difference_of_covariances(states):
    """The enhanced gradient, with particles replaced by every state, weighted."""
    dbm = make(estimator=PCD(chains=512), weight_decay=0.0)
    log_probabilities, layers = log_p(dbm, states)
    p, x = log_probabilities.exp(), data().double()
    q = [mean.detach() for mean in dbm.mean_field(x).means]
    of_model = torch.cat([p @ layer for layer in layers])
    dbm.move_offsets((torch.cat([mean.mean(0) for mean in q]) + of_model) / 2, 1.0)
    even = torch.cat([layers[0], layers[2]], 1)
    unique, rows = even.unique(dim=0, return_inverse=True)
    weights = torch.zeros(len(unique), dtype=torch.float64).index_add_(0, rows, p)
    now = dbm.couplings()
    loss = dbm.positive(now, x).mean() - weights @ now.free_energy(unique)
    for n, gradient in enumerate(torch.autograd.grad(loss, list(dbm.weights))):
        means = [p @ layers[n], p @ layers[n + 1]]
        model = layers[n].T @ (p[:, None] * layers[n + 1]) - torch.outer(*means)
        centred = [mean - mean.mean(0) for mean in q[n : n + 2]]
        torch.testing.assert_close(gradient, model - centred[0].T @ centred[1] / len(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("centring", ["data", "model", "average"])
def test_offsets_follow_the_means_of_data_and_particles(centring, states):
    dbm = make(estimator=PCD(chains=40), centring=centring, centring_rate=0.25)
    dbm.estimator.chain.copy_(torch.randint(2, (40, 9), generator=seeded(5)).double())
    x, chain, before = data(), dbm.estimator.chain, dbm.offsets.clone()
    (w1, w2), (_, b1, _) = dbm.weights, [layer.eta for layer in dbm.machine().layers]
    middle = (chain[:, :6] @ w1 + chain[:, 6:] @ w2.T + b1).sigmoid()
    found = {
        "data": torch.cat([mean.mean(0) for mean in dbm.mean_field(x.double()).means]),
        "model": torch.cat([chain[:, :6].mean(0), middle.mean(0), chain[:, 6:].mean(0)]),
    }
    found["average"] = (found["data"] + found["model"]) / 2
    torch.testing.assert_close(dbm.centre(x.double()), found[centring])
    dbm.move_offsets(dbm.centre(x.double()), dbm.centring_rate)
    torch.testing.assert_close(dbm.offsets, before + 0.25 * (found[centring] - before).detach())


def test_log_z_is_rounder_in_centred_coordinates(states):
    """The condition number of the Hessian of log Z at the initial parameters, by autograd."""
    torch.manual_seed(0)
    numbers = {}
    layers = states(sum(SIZES)).split(SIZES, 1)
    for centring in ("none", "data"):
        dbm = Dbm(SPEC, hidden_sizes=SIZES[1:], pretraining=0.0, centring=centring).double()
        dbm.initialise(Batch(data(200)), seeded())
        shapes = [p.shape for p in dbm.overlaid().values()]
        flat = torch.cat([p.detach().flatten() for p in dbm.overlaid().values()])

        def log_z(flat, shapes=shapes, offsets=dbm.offsets):
            parts = [p.view(s) for p, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
            return minus_energy(parts[:3], parts[3:], offsets, layers).logsumexp(0)

        values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(log_z, flat))
        numbers[centring] = (values[-1] / values[0]).item()
        assert values[0] > 0
    assert numbers["data"] < numbers["none"] / 10


def test_training_without_pretraining_raises_the_likelihood(states):
    torch.manual_seed(0)
    dbm = Dbm(SPEC, hidden_sizes=SIZES[1:], pretraining=0.0, centring="average", weight_std=0.3, tolerance=1e-2,
              estimator=PCD(chains=50)).double()  # fmt: skip
    x, g = data(100, ones=0.0), seeded()
    dbm.initialise(Batch(x), g)
    own = dbm.players()["model"]
    for _ in range(80):
        loss, _ = dbm.loss("model", Batch(x), g)
        with torch.no_grad():
            for p, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
                p -= 0.4 * gradient
        dbm.after_step("model", Batch(x), g)
    joint, layers = log_p(dbm, states)
    rows = (layers[0] @ 2.0 ** torch.arange(5, -1, -1, dtype=torch.float64)).long()
    of_x = torch.stack([joint[rows == n].logsumexp(0) for n in range(64)])
    codes = (x.double() @ 2.0 ** torch.arange(5, -1, -1, dtype=torch.float64)).long()
    rates = x.double().mean(0)
    independent = (x * rates.log() + (1 - x.double()) * (1 - rates).log()).sum(1).mean()
    assert of_x[codes].mean() > independent + 0.25

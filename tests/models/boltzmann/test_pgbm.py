"""Gates at pixels: everything against enumeration from the paper's energy; digits over noise come apart."""

import copy
from collections.abc import Callable
from itertools import product
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Generator, Tensor

from dgmbench.data.digits import THRESHOLD, Digits
from dgmbench.data.digits_background import DigitsBackground
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.likelihood.ais import bracket
from dgmbench.models.boltzmann.estimators import NCE, PCD, PT
from dgmbench.models.boltzmann.pgbm import Pgbm, SupervisedPgbm
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.contract import CanClassify, HasUnnormalisedElbo
from dgmbench.models.tasks import HasParts
from dgmbench.runs.shows import parts

D, SIZES, CLASSES = 4, (2, 3), 3
SPEC = DataSpec((D,), "binary", num_classes=CLASSES)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(supervised: bool = False, scale: float = 1.0, **args: object) -> Pgbm:
    settings = {"pretraining": 0.0, "mean_field_steps": 200, "sample_steps": 40} | args
    model = Pgbm(SPEC, hidden_sizes=SIZES, supervised=supervised, **settings).double()  # type: ignore[arg-type]
    g = seeded(1)
    with torch.no_grad():
        for p in model.overlaid().values():
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
        model.rates[: model.of_pixels] = torch.rand(model.of_pixels, generator=g, dtype=torch.float64) / 3 + 0.1
    return model


class Enumerated:
    """All (v, z, h, y) with their -E, written down term by term; z is the group that each pixel's gate chooses."""

    def __init__(self, model: Pgbm) -> None:
        labels = range(CLASSES) if model.classes else [0]
        bits = list(product((0.0, 1.0), repeat=D + sum(SIZES)))
        gates = list(product(range(2), repeat=D))
        rows = [(b, z, y) for b in bits for z in gates for y in labels]
        units = torch.tensor([b for b, _, _ in rows], dtype=torch.float64)
        self.v, self.h = units.split([D, sum(SIZES)], 1)
        self.z = torch.tensor([z for _, z, _ in rows])
        self.y = torch.tensor([y for _, _, y in rows])
        biases = model.visible_bias[: 2 * D].view(D, 2) + log(2)  # the machine's are against either gate of off
        groups = self.h.split(SIZES, 1)
        self.value = self.h @ model.hidden_bias
        for r in range(2):
            gated = (self.z == r) * self.v
            self.value = self.value + gated @ biases[:, r] + ((gated @ model.weights[r]) * groups[r]).sum(1)
        if model.classes:
            meets = (model.label_weight[self.y] * groups[0]).sum(1)
            self.value = self.value + model.visible_bias[2 * D :][self.y] + meets
        self.value = self.value.detach()

    def log_p(self, x: Tensor) -> Tensor:
        """Log p of every row of x (n, D)."""
        rows = [self.value[(self.v == one).all(1)].logsumexp(0) for one in x]
        return torch.stack(rows) - self.value.logsumexp(0)


@pytest.mark.parametrize("supervised", [False, True])
def test_conditionals_are_those_of_the_enumeration(states: Callable[[int], Tensor], supervised: bool) -> None:
    model = make(supervised)
    every, now = Enumerated(model), model.couplings()
    for row in (0, 1234 % len(every.v), len(every.v) - 77):
        v, z, h, y = every.v[row], every.z[row], every.h[row], every.y[row]
        # hidden units given pixels, gates and label
        same = (every.v == v).all(1) & (every.z == z).all(1) & (every.y == y)
        expected = (every.value[same].softmax(0)[:, None] * every.h[same]).sum(0)
        state = torch.stack([(z == r) * v for r in range(2)], 1).flatten()
        label = torch.nn.functional.one_hot(y, CLASSES).double()[: CLASSES * supervised]
        found = now.hidden_logits(torch.cat([state, label])[None]).sigmoid()[0]
        torch.testing.assert_close(found, expected)
        # pixels and gates given hidden units: on in one of two ways, or off with either gate
        same = (every.h == h).all(1) & (every.y == y)
        p = every.value[same].softmax(0)
        ways = [(p[:, None] * every.v[same] * (every.z[same] == r)).sum(0) for r in range(2)]
        mean = now.visible_units.mean(now.visible_logits(h[None]))[0]
        torch.testing.assert_close(mean[: 2 * D].view(D, 2), torch.stack(ways, 1))
        # gates given pixels and hidden units
        same &= (every.v == v).all(1)
        gate = (every.value[same].softmax(0)[:, None] * (every.z[same] == 0)).sum(0)
        logits = torch.stack([now.visible_logits(h[None])[0, r : 2 * D : 2] for r in range(2)], 1)
        torch.testing.assert_close((v[:, None] * logits).softmax(1)[:, 0], gate)
    if supervised:
        same = (every.v == v).all(1) & (every.z == z).all(1) & (every.h == h).all(1)
        torch.testing.assert_close(now.visible_logits(h[None])[0, 2 * D :].softmax(0), every.value[same].softmax(0))


@pytest.mark.parametrize("supervised", [False, True])
def test_the_bound_misses_log_p_by_the_divergence_of_q_and_annealing_brackets_log_z(
    states: Callable[[int], Tensor], supervised: bool
) -> None:
    model = make(supervised, mean_field_steps=60)
    every, x, path = Enumerated(model), states(D), model.annealing_path()
    log_z = float(path.exact_log_partition())
    assert log_z + D * log(2) == pytest.approx(float(every.value.logsumexp(0)), abs=1e-9)
    found = bracket(path, chains=300, temperatures=60, generator=seeded())
    low, high = found.interval()
    assert log_z - 0.5 < low < log_z < high < log_z + 0.5
    with torch.no_grad():
        bound = model.elbo_unnormalised(x.to(torch.uint8)) - log_z
        q = model.mean_field(x)
    assert isinstance(model, HasUnnormalisedElbo)
    for n in (3, 9, 15):
        same = (every.v == x[n]).all(1)
        log_posterior = every.value[same].log_softmax(0)
        gates = q.visible[n, : 2 * D].view(D, 2).clone()
        gates[x[n] == 0] = 0.5  # either gate of a pixel that is off
        log_q = gates.gather(1, every.z[same].t()).log().sum(0)
        h = every.h[same]
        log_q = log_q + (h * q.hidden[n].log() + (1 - h) * (1 - q.hidden[n]).log()).sum(1)
        if supervised:
            log_q = log_q + q.visible[n, 2 * D :].log()[every.y[same]]
        gap = float((log_q.exp() * (log_q - log_posterior)).sum())
        assert float(every.log_p(x[n : n + 1])) - float(bound[n]) == pytest.approx(gap, abs=1e-9)
        assert gap > 1e-4


def test_chains_and_samples_have_the_enumerated_frequencies(
    states: Callable[[int], Tensor], index: Callable[[Tensor], Tensor], chi_squared: Callable[[Tensor, Tensor], float]
) -> None:
    model = make()
    drawn = model.sample(6000, generator=seeded()).double()
    counts = torch.bincount(index(drawn), minlength=2**D)
    assert chi_squared(counts, Enumerated(model).log_p(states(D)).exp()) < 4


def test_reverse_runs_start_at_the_data_with_gates_from_q() -> None:
    model = make(supervised=True, mean_field_steps=20)
    x = torch.tensor([[0, 1, 1, 0]], dtype=torch.uint8)
    state = model.annealing_path().state_from(x.expand(2000, -1), generator=seeded())
    mean, p = state.mean(0), model.mean_field(x.double()).visible[0]
    assert ((mean - p).abs() <= 4 * (p * (1 - p) / 2000).sqrt() + 1e-12).all()
    assert torch.equal(model.by_group(state).sum(1), x.double().expand(2000, -1))
    assert (state[:, 2 * D :].sum(1) == 1).all()


def test_the_gradient_is_that_of_the_bound_at_fixed_means() -> None:
    model = make(supervised=True, estimator=PCD(chains=50), scale=0.5)
    with torch.no_grad():
        model.estimator.initialise(model, seeded())
    x, y = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 1]], dtype=torch.uint8), torch.tensor([2, -1])
    loss, _ = model.loss("model", Batch(x, y), seeded())
    weight, label = torch.autograd.grad(loss, [model.weights[1], model.label_weight])
    q, chain, now = model.mean_field(model.states(Batch(x, y))), model.estimator.particles, model.couplings()
    assert chain is not None
    torch.testing.assert_close(q.visible[0, 2 * D :], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    hidden = now.hidden_logits(chain).sigmoid()
    second, others = slice(1, 2 * D, 2), slice(SIZES[0], None)
    expected = chain[:, second].t() @ hidden[:, others] / 50 - q.visible[:, second].t() @ q.hidden[:, others] / 2
    torch.testing.assert_close(weight, expected)
    first = slice(0, SIZES[0])
    expected = chain[:, 2 * D :].t() @ hidden[:, first] / 50 - q.visible[:, 2 * D :].t() @ q.hidden[:, first] / 2
    torch.testing.assert_close(label, expected)


def test_the_machine_begins_as_the_rbm_with_the_others_at_the_background() -> None:
    model = Pgbm(SPEC, hidden_sizes=(3, 2, 2), weight_decay=0.1).double()
    x = torch.randint(2, (50, D), generator=seeded()).to(torch.uint8)
    model.initialise(Batch(x), seeded())
    assert model.rbm is not None
    with torch.no_grad():
        model.rbm.weight.normal_(generator=seeded())
    before = model.couplings()
    assert torch.equal(before.weight[::3, :3], model.rbm.weight)
    assert not before.weight[1::3, :3].any()
    level = before.visible_bias.view(D, 3)[:, 1:].exp().sum(1)  # odds that a pixel is on in another group's way
    rates = (x.double().sum(0) + 1) / 52
    torch.testing.assert_close(level, (rates.logit().quantile(0.1)).exp().expand(D))
    rbm_loss, _ = model.loss("rbm", Batch(x), seeded())
    plain, _ = model.rbm.loss("model", Batch(x.double()), seeded())
    assert torch.equal(rbm_loss, plain)
    model.enter_stage(model.stages()[-1], seeded())
    for one, other in zip(model.couplings(), before, strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        model.rbm.weight.zero_()
    assert torch.equal(model.couplings().weight, before.weight), "from now on it is on its own"
    assert list(model.players()) == ["rbm", "model"]


Split = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Split]:
    """Pictures, labels and masks."""
    folder = tmp_path_factory.mktemp("none")
    noisy, clean = DigitsBackground().read(folder).parts, Digits(size=8).read(folder).parts
    found = {}
    for split, part in noisy.items():
        mask = clean[split].x
        assert isinstance(part.x, np.ndarray)
        assert isinstance(mask, np.ndarray)
        assert part.y is not None
        found[split] = (torch.from_numpy(part.x), torch.from_numpy(part.y), torch.from_numpy(mask >= THRESHOLD))
    return found


def fit(model: Pgbm | Rbm, data: Split, player: str, epochs: int, lr: float) -> None:
    g, (x, y, _) = seeded(), data
    optimiser = torch.optim.SGD(model.players()[player], lr=lr, momentum=0.5)
    for epoch in range(epochs):
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 - epoch / epochs)
        for rows in torch.randperm(len(x), generator=g).split(50):
            batch = Batch(x[rows], y[rows])
            optimiser.zero_grad()
            model.loss(player, batch, g)[0].backward()
            optimiser.step()
            model.after_step(player, batch, g)


@pytest.fixture(scope="module")
def trained(digits: dict[str, Split]) -> tuple[SupervisedPgbm, SupervisedPgbm]:
    """After its first stage, which needs no label, and after the second."""
    torch.manual_seed(0)
    spec = DataSpec((1, 8, 8), "binary", num_classes=10)
    model = Pgbm(spec, hidden_sizes=(80, 4), supervised=True, mean_field_steps=5)
    assert isinstance(model, SupervisedPgbm)
    model.initialise(Batch(digits["train"][0]), seeded())
    fit(model, digits["train"], "rbm", 40, 0.2)
    before = copy.deepcopy(model)
    model.enter_stage(model.stages()[-1], seeded())
    fit(model, digits["train"], "model", 12, 0.2)
    return before, model


def test_the_gates_find_the_digit(trained: tuple[SupervisedPgbm, SupervisedPgbm], digits: dict[str, Split]) -> None:
    x, _, mask = digits["test"]
    on = x > 0  # where a pixel is off its gate says nothing, and nothing of the mask is there
    where = mask[on].numpy()
    position = digits["train"][2].double().mean(0).expand(x.shape)[on].numpy()
    for model in trained:
        assert isinstance(model, HasParts)
        shown = parts(model, Batch(x), model.spec, seeded())
        torch.testing.assert_close(shown[:, 1:].sum(1), shown[:, 0])
        found = roc_auc_score(where, shown[:, 1][on].numpy())
        assert found > max(0.8, roc_auc_score(where, position) + 0.02)


def test_the_relevant_code_is_better_than_an_rbms(
    trained: tuple[SupervisedPgbm, SupervisedPgbm], digits: dict[str, Split], tmp_path: Path
) -> None:
    """By a linear probe; the other machine is the same RBM, trained for as long."""
    before, model = trained
    assert before.rbm is not None
    rbm = copy.deepcopy(before.rbm)
    x, y, mask = digits["train"]
    fit(rbm, (x.flatten(1), y, mask), "model", 12, 0.2)
    tests = [DigitsBackground(draw=draw).read(tmp_path).parts["test"] for draw in range(4)]
    errors = []
    for encode in (model.encode, rbm.encode):
        with torch.no_grad():
            linear = LogisticRegression(max_iter=300).fit(encode(x).numpy(), y.numpy())
            wrong = [linear.predict(encode(torch.from_numpy(np.asarray(one.x))).numpy()) != one.y for one in tests]
        errors.append(np.mean(wrong, 0))
    gain = errors[1] - errors[0]  # of each digit, over four backgrounds
    assert gain.mean() > gain.std() / len(gain) ** 0.5


def test_the_label_is_told_by_the_mean_field(
    trained: tuple[SupervisedPgbm, SupervisedPgbm], digits: dict[str, Split]
) -> None:
    (x, y, _), model = digits["test"], trained[1]
    assert isinstance(model, CanClassify)
    assert not isinstance(make(), CanClassify)
    scores = model.classify(x)
    torch.testing.assert_close(scores[:5].exp().sum(1), torch.ones(5))
    assert float((scores.argmax(1) != y).double().mean()) < 0.4


@pytest.mark.parametrize(
    ("spec", "args", "sentence"),
    [
        (DataSpec((4,), "real"), {}, "models binary data"),
        (SPEC, {"hidden_sizes": [5]}, r"two or more groups, but model.hidden_sizes is \[5\]"),
        (SPEC, {"hidden_sizes": [5, 0]}, "hidden_sizes"),
        (SPEC, {"estimator": NCE()}, "NCE needs p"),
        (DataSpec((4,), "binary"), {"supervised": True}, "needs data with labels"),
    ],
)
def test_what_it_cannot_be_made_of(spec: DataSpec, args: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Pgbm(spec, **args)  # type: ignore[arg-type]


def test_tempering_moves_it_too(tmp_path: Path) -> None:
    model = make(estimator=PT(chains=5, temperatures=3))
    x = torch.randint(2, (8, D), generator=seeded()).to(torch.uint8)
    model.estimator.initialise(model, seeded())
    model.loss("model", Batch(x), seeded())[0].backward()
    model.after_step("model", Batch(x), seeded())
    particles = model.estimator.particles
    assert particles is not None
    assert model.annealing_path().possible(particles).all()

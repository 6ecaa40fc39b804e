"""Boosted MMI by hand, features that posteriors move, and the network that is left where they do not."""

import copy
from math import exp, log

import pytest
import torch
from tests.spoken import WORDS, fit, random_utterances, seeded, spoken

from dgmbench.data.spec import Batch
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.dbn_hmm import DbnHmm
from dgmbench.models.boltzmann.fbmmi_dbn import FbmmiDbn
from dgmbench.nn.hmm import Chain, boosted_mmi, score


def make(**args: object) -> FbmmiDbn:
    """With random M."""
    torch.manual_seed(0)
    model = FbmmiDbn(WORDS, hidden_sizes=(5,), context=1, gaussians=2, **args).double()  # type: ignore[arg-type]
    model.initialise(random_utterances(), seeded())
    with torch.no_grad():
        model.moved.normal_(generator=seeded())
    return model


def two_hypotheses() -> tuple[Chain, torch.Tensor]:
    """Two words of one state that never change into one another; the scores of three frames."""
    prior = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    chain = Chain(prior, torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]).double(), torch.zeros(2).double())
    return chain, torch.tensor([[[0.5, -1.0], [0.2, 0.4], [-0.3, 0.8]]], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("boost", [0.0, 0.7])
def test_the_criterion_on_two_hypotheses_by_hand(boost: float) -> None:
    chain, emission = two_hypotheses()
    found = boosted_mmi(chain, emission, torch.tensor([3]), torch.tensor([[0, 0, 0]]), boost=boost)
    right, wrong = log(0.3) + 0.5 + 0.2 - 0.3, log(0.7) - 1.0 + 0.4 + 0.8
    boosted = exp(right - 3 * boost)  # all three of its frames are right, none of the other's
    assert float(found.detach()) == pytest.approx(right - log(boosted + exp(wrong)))
    (gradient,) = torch.autograd.grad(found.sum(), emission)
    share = boosted / (boosted + exp(wrong))
    expected = torch.tensor([1 - share, share - 1], dtype=torch.float64).expand(1, 3, 2)
    torch.testing.assert_close(gradient, expected)


def test_without_a_boost_it_is_plain_mmi() -> None:
    """log p(path | y), which is never above 0 and sums to 1; with one it lies above by no more than b a frame."""
    model, batch = make(boost=0.3, acoustic=0.2), random_utterances(3)
    assert batch.y is not None
    assert batch.length is not None
    t = 4  # of the first utterance: its word takes 3 states, of which one lasts
    paths = [[3 * w + s for s in seen] for w in (0, 1) for seen in ([0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2])]
    every = torch.full((6, 6), -1)
    every[:, :t] = torch.tensor(paths)
    same = Batch(batch.x[:1].expand(6, -1, -1), every, None, None, batch.length[:1].expand(6))
    with torch.no_grad():
        plain, boosted = model.boosted(same, 0.0)[0], model.boosted(same, 0.3)[0]
        assert float(plain.exp().sum()) == pytest.approx(1.0)
        chain, emission = model.acoustic_lattice(same.x, same.length)  # type: ignore[arg-type]
        joint = score(chain, emission, same.length, every)  # type: ignore[arg-type]
        torch.testing.assert_close(plain, joint.log_softmax(0))
        right = torch.tensor([[sum(a == b for a, b in zip(p, q, strict=True)) for q in paths] for p in paths])
        torch.testing.assert_close(boosted, joint - (joint - 0.3 * right).logsumexp(1))
        assert ((boosted > plain) & (boosted < plain + 0.3 * t)).all()
        for boost in (0.0, 0.3):
            model.boost = boost
            loss = float(model.loss("transform", batch, seeded())[0])
            assert loss == pytest.approx(-float(model.boosted(batch, boost)[0].sum() / batch.length.sum()))
        mmi = model.held_out(batch)["mmi"]
        torch.testing.assert_close(mmi, model.boosted(batch, 0.0)[0] / batch.length)


def test_the_gradient_of_the_transform_is_that_of_differences() -> None:
    model, batch = make(), random_utterances()
    loss, _ = model.loss("transform", batch, seeded())
    (gradient,) = torch.autograd.grad(loss, model.moved)
    with torch.no_grad():
        for place in ((1, 2), (0, 7)):
            values = []
            for step in (1e-5, -1e-5):
                model.moved[place] += step
                values.append(float(model.loss("transform", batch, seeded())[0]))
                model.moved[place] -= step
            assert float(gradient[place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_frames_are_moved_by_the_posteriors_of_the_states_gaussians() -> None:
    model, batch = make(), random_utterances()
    assert batch.y is not None
    assert batch.length is not None
    kept = batch.y >= 0
    x = ((batch.x - model.mean) / model.deviation)[kept]
    normal = torch.distributions.Normal(model.component_means, model.component_variances.sqrt())
    density = normal.log_prob(x[:, None, None]).sum(3).exp() * model.component_log_weights.exp()
    joint = density * (batch.y[kept].bincount(minlength=6) / kept.sum())[:, None]
    g = (joint / joint.sum((1, 2), keepdim=True)).flatten(1)
    moved = x + torch.einsum("nk,dk->nd", g, model.moved)
    frames = model.frames(batch.x, batch.length)
    torch.testing.assert_close(frames[kept], moved)
    assert not frames[~kept].any()
    _, emission = model.acoustic_lattice(batch.x, batch.length)
    after = normal.log_prob(moved[:, None, None]).sum(3) + model.component_log_weights
    torch.testing.assert_close(emission[kept], 0.1 * after.logsumexp(2))


def test_the_stack_starts_on_windows_of_moved_frames() -> None:
    model = make()
    before = model.windows.clone().view(len(model.windows), 3, 2)
    model.enter_stage(model.stages()[1], seeded())
    for place in range(3):
        torch.testing.assert_close(model.windows.view_as(before)[:, place], model.features(before[:, place]))


def test_without_a_transform_it_is_the_network_on_the_frames_bit_for_bit() -> None:
    batch, models = random_utterances(), []
    for kind, args in ((FbmmiDbn, {"transform": 0.0}), (DbnHmm, {"realignments": 0})):
        torch.manual_seed(0)
        model = kind(WORDS, hidden_sizes=(5, 4), context=1, **args).double()
        model.initialise(batch, seeded())
        fit(model, batch, {"rbm_1": 3, "rbm_2": 3, "frames": 3})
        models.append(model)
    moved, plain = models
    assert [stage.name for stage in moved.stages()] == [stage.name for stage in plain.stages()]
    assert torch.equal(moved.frames(batch.x, batch.length), plain.frames(batch.x, batch.length))
    own = moved.state_dict()
    for name, value in plain.state_dict().items():
        if not name.startswith("aligne"):  # what the hybrid aligns by
            assert torch.equal(own[name], value), name
    assert torch.equal(moved.scores(batch.x, batch.length), plain.scores(batch.x, batch.length))


def test_the_transform_helps_the_gmm_hmm_and_the_network_on_other_utterances() -> None:
    """Against the same network at the same updates on frames that nothing has moved."""
    spec, train, test = spoken()
    torch.manual_seed(0)
    first = FbmmiDbn(spec, hidden_sizes=(64,), context=2)
    first.initialise(train, seeded())
    found = []
    for updates in ({}, {"transform": 20}):
        model = copy.deepcopy(first)
        fit(model, train, updates, lr=0.01)
        fit(model, train, {"rbm_1": 10, "frames": 40})
        found.append(model.held_out(test))
    change = {name: found[1][name] - found[0][name] for name in found[0]}
    error = {name: float(each.std() / len(each) ** 0.5) for name, each in change.items()}
    assert float(change["mmi"].mean()) > 4 * error["mmi"]
    assert float(change["gmm_path_error"].mean()) < -2 * error["gmm_path_error"]
    assert float(change["frame_error"].mean()) < -2 * error["frame_error"]


def test_utterances_that_are_not_known_or_no_words_are_left_out() -> None:
    model, batch = make(), random_utterances(4)
    assert batch.y is not None
    assert batch.length is not None
    alone, _ = model.loss("transform", Batch(batch.x[1:2], batch.y[1:2], None, None, batch.length[1:2]), seeded())
    y, length = batch.y.clone(), batch.length.clone()
    y[0, 1], y[2] = -1, torch.tensor([0, 3, 0, 3, 0, 3])
    y[3, 2:], length[3] = -1, 2  # shorter than any word
    changed = batch._replace(y=y, length=length)
    together, _ = model.loss("transform", changed, seeded())
    torch.testing.assert_close(together, alone)
    (gradient,) = torch.autograd.grad(together, model.moved)
    assert gradient.isfinite().all()
    found = model.held_out(changed)
    assert found["mmi"].isnan().tolist() == [True, False, True, True]
    assert model.held_out(changed._replace(y=None))["gmm_path_error"].isnan().all()


def test_bad_values_are_refused() -> None:
    for args, name in (({"gaussians": 0}, "gaussians"), ({"boost": -1.0}, "boost"), ({"acoustic": 0.0}, "acoustic")):
        with pytest.raises(UserError, match=name):
            FbmmiDbn(WORDS, hidden_sizes=(4,), **args)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="transform"):
        FbmmiDbn(WORDS, hidden_sizes=(4,), transform=-0.1)

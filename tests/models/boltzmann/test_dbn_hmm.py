"""The hybrid: emissions by Bayes, alignment of the words anew, and fewer wrong words than a GMM-HMM's."""

import pytest
import torch
from sklearn.mixture import GaussianMixture
from tests.spoken import WORDS, fit, random_utterances, seeded, spoken, word_error_of

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.tasks.prediction import word_error
from dgmbench.models.boltzmann.dbn_hmm import DbnHmm
from dgmbench.models.tasks import CanPredict, HasObjective
from dgmbench.nn.hmm import align, score, viterbi, words_of


def make(**args: object) -> DbnHmm:
    torch.manual_seed(0)
    model = DbnHmm(WORDS, hidden_sizes=(5, 4), context=1, **args).double()  # type: ignore[arg-type]
    model.initialise(random_utterances(), seeded())
    return model


def test_windows_are_the_frames_around_each_with_the_ends_repeated() -> None:
    model = make()
    x = torch.arange(12.0).view(1, 6, 2).double()
    windows = model.cut(x, torch.tensor([3]))
    assert windows.tolist() == [[0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 4, 5]]
    frames = model.frames(random_utterances().x, random_utterances().length)  # type: ignore[arg-type]
    kept = frames[random_utterances().y >= 0]  # type: ignore[operator]
    torch.testing.assert_close(kept.mean(0), torch.zeros(2).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(kept.std(0, correction=0), torch.ones(2).double())


def test_emissions_are_posteriors_over_priors() -> None:
    model, batch = make(), random_utterances()
    assert batch.y is not None
    assert batch.length is not None
    chain, found = model.lattice(batch.x, batch.length)
    priors = torch.stack([(batch.y == s).sum() for s in range(6)]).double()
    priors /= priors.sum()
    each = model.logits(batch.x, batch.length).softmax(1) / priors
    torch.testing.assert_close(found[batch.y >= 0], each.log())
    again = [((batch.y[:, 1:] == s) & (batch.y[:, :-1] == s)).sum() / (1 + (batch.y == s).sum()) for s in range(6)]
    expected = torch.stack(again).double().clamp(0.01, 0.99)
    torch.testing.assert_close(chain.transition.diagonal().exp(), expected)


def test_the_network_begins_as_the_stack() -> None:
    model, batch = make(), random_utterances()
    assert batch.length is not None
    with torch.no_grad():
        for rbm in model.rbms:
            for p in rbm.parameters():
                p.normal_(generator=seeded(1))
    for stage in model.stages()[:2]:
        model.enter_stage(stage, seeded())
        loss, _ = model.loss(stage.name, batch, seeded())
        assert loss.isfinite()
    before = model.scores(batch.x, batch.length)
    model.enter_stage(model.stages()[2], seeded())
    torch.testing.assert_close(model.scores(batch.x, batch.length), before)
    with torch.no_grad():
        model.rbms[0].weight.zero_()
    torch.testing.assert_close(model.scores(batch.x, batch.length), before, msg="from now on it is on its own")


def test_realignment_is_viterbi_through_the_same_words_with_the_network_as_it_was() -> None:
    model, batch = make(), random_utterances()
    assert batch.y is not None
    assert batch.length is not None
    for stage in model.stages()[2:]:
        model.enter_stage(stage, seeded())
    chain, scores = model.lattice(batch.x, batch.length)
    found = model.alignment(batch)
    assert torch.equal(words_of(found, 3), words_of(batch.y, 3))
    assert not torch.equal(found, batch.y)
    wanted = align(chain, scores, batch.length, words_of(batch.y, 3), 3)
    assert torch.equal(found, wanted)
    assert (score(chain, scores, batch.length, found) >= score(chain, scores, batch.length, batch.y)).all()
    with torch.no_grad():
        model.top.weight.normal_(generator=seeded())
    assert torch.equal(model.alignment(batch), found), "the aligner is a frozen copy"
    model.aligner_priors[1::3] -= 30
    middle = model.alignment(batch)
    assert (middle % 3 == 1).sum() > (found % 3 == 1).sum(), "states that are rare are likelier for the same posterior"
    model.aligner_priors[1::3] += 30
    model.settle(iter([batch]), seeded())
    assert model.state_counts.tolist() == found[found >= 0].bincount(minlength=6).tolist()
    short = batch._replace(length=batch.length.clamp(max=2), y=batch.y.masked_fill(torch.arange(6) >= 2, -1))
    short.y[0] = torch.tensor([0, 3, -1, -1, -1, -1])  # type: ignore[index]
    assert torch.equal(model.alignment(short), short.y), "too short for its words"


@pytest.fixture(scope="module")
def trained() -> DbnHmm:
    spec, train, _ = spoken()
    torch.manual_seed(0)
    model = DbnHmm(spec, hidden_sizes=(128,), context=4)
    model.initialise(train, seeded())
    fit(model, train, {"rbm_1": 20, "frames": 110, "realigned_1": 20})
    return model


def test_fewer_words_are_wrong_than_by_a_gmm_hmm_on_the_same_features(trained: DbnHmm) -> None:
    _, train, test = spoken()
    assert train.y is not None
    assert train.length is not None
    assert test.length is not None
    features = trained.frames(train.x, train.length)
    emission = []
    for state in range(30):
        mixture = GaussianMixture(2, covariance_type="diag", reg_covar=0.01, random_state=0)
        mixture.fit(features[train.y == state].numpy())
        each = trained.frames(test.x, test.length).flatten(0, 1).numpy()
        emission.append(torch.from_numpy(mixture.score_samples(each)).view(len(test.x), -1))
    path, _ = viterbi(trained.loop(), torch.stack(emission, 2), test.length)
    truth, said = trained.target(test).tolist(), words_of(path, 3).tolist()
    pairs = [([w for w in a if w >= 0], [w for w in b if w >= 0]) for a, b in zip(truth, said, strict=True)]
    gmm = word_error(pairs).value
    assert 0.05 < gmm < 0.2
    assert word_error_of(trained, test) < gmm - 0.02


def test_what_is_measured(trained: DbnHmm) -> None:
    _, _, test = spoken()
    assert isinstance(trained, HasObjective)
    assert isinstance(trained, CanPredict)
    assert test.y is not None
    assert test.length is not None
    found = trained.held_out(test)
    path = trained.best_path(test.x, test.length)
    wrong = ((path != test.y) & (test.y >= 0)).sum(1) / test.length
    torch.testing.assert_close(found["path_error"].float(), wrong)
    assert float(found["path_error"].mean()) < float(found["frame_error"].mean()) < 0.5
    unknown = test._replace(y=torch.full_like(test.y, -1))
    assert trained.held_out(unknown)["path_error"].isnan().all()


@pytest.mark.parametrize(
    ("spec", "args", "sentence"),
    [
        (DataSpec((6,), "real"), {}, "sequences of real frames"),
        (DataSpec((6, 2), "real", lengths=True), {}, "a label for every frame"),
        (WORDS, {"hidden_sizes": ()}, "needs a hidden layer"),
        (WORDS, {"realignments": -1}, "realignments"),
    ],
)
def test_what_it_cannot_be_made_of(spec: DataSpec, args: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        DbnHmm(spec, **({"hidden_sizes": (4,)} | args))  # type: ignore[arg-type]


def test_states_that_never_occur_and_utterances_without_words_are_refused() -> None:
    batch = random_utterances()
    assert batch.y is not None
    model = DbnHmm(WORDS, hidden_sizes=(4,))
    with pytest.raises(UserError, match="3 of the 6 states never occur"):
        model.initialise(batch._replace(y=batch.y.masked_fill(batch.y > 2, -1)), seeded())
    with pytest.raises(UserError, match="needs utterances with labels"):
        model.initialise(Batch(batch.x, torch.full_like(batch.y, -1), None, None, batch.length), seeded())

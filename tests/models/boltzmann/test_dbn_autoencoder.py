"""Deep autoencoder: the unrolled network is the stack of RBMs, and the stack is a better start than chance."""

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Generator

from dgmbench.data.digits import Digits
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.dbn_autoencoder import CodeRbm, DbnAutoencoder

SPEC = DataSpec((2, 3), "discrete", levels=5)


def make(seed=0, **args):
    model = DbnAutoencoder(SPEC, **({"hidden_sizes": (5, 4), "code": 2} | args)).double()
    g = Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    return model


def fine_tuning(model):
    model.enter_stage(model.stages()[-1], Generator())
    return model


def test_unrolled_it_is_the_mean_pass_up_and_down_the_rbms():
    model = make()
    x = torch.randint(5, (7, 2, 3), generator=Generator().manual_seed(1)).to(torch.uint8)
    h = x.double().flatten(1) / 4
    weights = [(rbm.weight, rbm.visible_bias, rbm.hidden_bias) for rbm in model.rbms]
    with torch.no_grad():
        for weight, _, bias in weights[:-1]:
            h = torch.sigmoid(h @ weight + bias)
        code = h @ weights[-1][0] + weights[-1][2]
        h = code
        for weight, bias, _ in reversed(weights):
            h = torch.sigmoid(h @ weight.T + bias)
        for _ in range(2):  # before fine-tuning, and as it begins
            torch.testing.assert_close(model.encode(x), code)
            torch.testing.assert_close(model.reconstruct(x), 4 * h.view(7, 2, 3))
            fine_tuning(model)
        for p in model.rbms.parameters():  # from here on the network is its own
            p.zero_()
        torch.testing.assert_close(model.encode(x), code)


def test_the_rbm_of_the_code_has_real_units_of_deviation_one(states):
    """Of a two-dimensional code, the energy summed out by quadrature, and draws."""
    torch.manual_seed(0)
    rbm = CodeRbm(DataSpec((3,), "binary"), hidden=2, weight_std=0.7).double()
    with torch.no_grad():
        rbm.hidden_bias.copy_(torch.tensor([0.3, -0.8]))
        rbm.visible_bias.copy_(torch.tensor([0.5, -1.0, 0.2]))
        grid = torch.linspace(-9, 9, 600, dtype=torch.float64)
        h = torch.cartesian_prod(grid, grid)
        step = (grid[1] - grid[0]) ** 2
        v = states(3)
        minus_energy = v @ rbm.weight @ h.T + (v @ rbm.visible_bias)[:, None] + h @ rbm.hidden_bias
        minus_energy = minus_energy - 0.5 * h.square().sum(1)
        free = -(minus_energy.exp().sum(1) * step).log()
        torch.testing.assert_close(rbm.free_energy(v), free)
        drawn = rbm.couplings().sample_hidden(v[5:6].expand(40_000, -1), Generator().manual_seed(2))
        mean = rbm.hidden_bias + v[5] @ rbm.weight
        assert (drawn.mean(0) - mean).abs().max() < 4 / 200
        assert (drawn.std(0) - 1).abs().max() < 4 / 280
        torch.testing.assert_close(rbm.hidden_probability(v[5:6])[0], mean)


def test_errors_are_those_of_their_definition():
    model = fine_tuning(make())
    x = torch.randint(5, (6, 2, 3), generator=Generator().manual_seed(1)).to(torch.uint8)
    with torch.no_grad():
        p, v = model.reconstruct(x).flatten(1) / 4, x.double().flatten(1) / 4
        errors = model.held_out(Batch(x))
        loss, _ = model.loss("autoencoder", Batch(x), Generator())
    torch.testing.assert_close(errors["squared_error"], ((p - v) ** 2).sum(1))
    torch.testing.assert_close(errors["cross_entropy"], -(v * p.log() + (1 - v) * (1 - p).log()).sum(1))
    torch.testing.assert_close(loss, errors["cross_entropy"].mean())


def trained(pretraining, updates, x, sizes):
    """By gradient descent with momentum, the updates shared out among the stages."""
    torch.manual_seed(0)
    spec = DataSpec((1, 8, 8), "discrete", levels=17)
    model, g = DbnAutoencoder(spec, hidden_sizes=sizes, code=4, pretraining=pretraining), Generator().manual_seed(0)
    model.initialise(Batch(x), g)
    whole = sum(stage.share for stage in model.stages())
    for stage in model.stages():
        model.enter_stage(stage, g)
        own = model.players()[stage.players[0]]
        optimizer = torch.optim.SGD(own, lr=0.1, momentum=0.9)
        for _ in range(round(updates * stage.share / whole)):
            batch = Batch(x[torch.randint(len(x), (50,), generator=g)])
            loss, _ = model.loss(stage.players[0], batch, g)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def test_a_code_of_four_numbers_beats_four_components_and_the_same_net_from_random_weights(tmp_path):
    parts = Digits().read(tmp_path).parts
    x, held_out = (torch.as_tensor(parts[name].x) for name in ("train", "test"))
    squares = {}
    for pretraining in (0.5, 0.0):
        model = trained(pretraining, 1500, x, (100, 50))
        with torch.no_grad():
            squares[pretraining] = model.held_out(Batch(held_out))["squared_error"].double()
    flat = [each.flatten(1).numpy() / 16 for each in (x, held_out)]
    pca = PCA(4).fit(flat[0])
    components = ((pca.inverse_transform(pca.transform(flat[1])) - flat[1]) ** 2).sum(1)
    for other in (torch.as_tensor(components), squares[0.0]):
        gain = other - squares[0.5]
        assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5


@pytest.mark.parametrize(
    ("spec", "args", "sentence"),
    [
        (DataSpec((4,), "real"), {}, "takes bits or grey levels"),
        (SPEC, {"hidden_sizes": ()}, "needs a hidden layer below its code"),
        (SPEC, {"code": 0}, "model.code=0 must be at least 1"),
    ],
)
def test_what_it_cannot_be_made_of(spec, args, sentence):
    with pytest.raises(UserError, match=sentence):
        DbnAutoencoder(spec, **args)

"""MMD GAN: the identity critic gives gmmn's loss, opposite signs on the MMD, the one-sided hinge by hand."""

import pytest
import torch
from torch import nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.moment_matching.gmmn import Gmmn
from dgmbench.models.moment_matching.mmd_gan import MmdGan

DIGITS, PLANE = DataSpec((1, 8, 8), "discrete", levels=17), DataSpec((2,), "real")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(spec=PLANE, **settings) -> MmdGan:
    torch.manual_seed(0)
    return MmdGan(spec, **{"hidden_sizes": (8,), "latent": 3, "code": 4, **settings})


def test_the_identity_critic_gives_the_loss_of_gmmn():
    bandwidths = (0.5, 2.0)
    model = small(rank_weight=0.0, bandwidths=bandwidths).double()
    model.critic = nn.Flatten()
    plain = Gmmn(PLANE, latent=3, hidden_sizes=(8,), bandwidths=bandwidths).double()
    plain.generator.load_state_dict(model.generator.state_dict())
    plain.noise = model.noise = lambda n, generator: torch.randn(n, 3, generator=generator, dtype=torch.float64)
    x = torch.randn(20, 2, generator=generator(1), dtype=torch.float64)
    model.scaling = plain.scaling = nn.Identity()
    ours, theirs = (each.loss(p, Batch(x), generator(2)) for each, p in ((model, "generator"), (plain, "model")))
    assert ours[0].item() == pytest.approx(theirs[0].item(), abs=1e-12)
    assert ours[1]["mmd2_unbiased"].item() == pytest.approx(theirs[1]["mmd2_unbiased"].item(), abs=1e-12)


def test_critic_and_generator_pull_the_discrepancy_in_opposite_directions():
    model = small(autoencoder_weight=0.0, rank_weight=0.0)
    x = Batch(torch.randn(30, 2, generator=generator(1)) + 1.0)
    critic, generators = (model.loss(player, x, generator(3)) for player in ("critic", "generator"))
    assert critic[0].item() == pytest.approx(-generators[0].item(), rel=1e-6)
    for player, sign in (("critic", 1.0), ("generator", -1.0)):
        parameters = [p for p in model.players()[player] if any(p is q for q in model.critic.parameters())]
        parameters = parameters or model.players()[player]
        before = model.loss("generator", x, generator(3))[0].item()
        kept = [p.detach().clone() for p in parameters]
        gradients = torch.autograd.grad(model.loss(player, x, generator(3))[0], parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p -= 1e-3 * g
        after = model.loss("generator", x, generator(3))[0].item()
        assert (after - before) * sign > 0, f"a step of the {player}"
        with torch.no_grad():
            for p, old in zip(parameters, kept, strict=True):
                p.copy_(old)


def test_gradients_reach_the_players_own_parameters_only():
    model, x = small(), Batch(torch.randn(10, 2, generator=generator(1)))
    own = {name: {id(p) for p in parameters} for name, parameters in model.players().items()}
    model.loss("critic", x, generator())[0].backward()
    assert {id(p) for p in model.parameters() if p.grad is not None} == own["critic"]


def test_the_feasible_set_term_is_the_one_sided_hinge():
    real = torch.tensor([[1.0, 0.0, 3.0], [3.0, 2.0, 3.0]])
    fake = torch.tensor([[1.0, 4.0, 0.0], [1.0, 0.0, 0.0]])
    assert MmdGan.rank(real, fake).item() == pytest.approx(((2 - 1) * 0 + (1 - 2) + 0) / 3)
    above = real + 10
    assert MmdGan.rank(above, fake).item() == 0.0
    above.requires_grad_()
    MmdGan.rank(above, fake).backward()
    assert not above.grad.any(), "no pull on the feasible side"
    model = small(autoencoder_weight=0.0, rank_weight=16.0)
    x = torch.randn(12, 2, generator=generator(1))
    value, logs = model.adversarial(model.critic(x), model.critic(x + 1))
    assert value.item() == pytest.approx(logs["mmd2"].item() ** 0.5 + 16 * logs["rank"].item(), rel=1e-5)


def test_the_critic_minimises_both_reconstruction_errors():
    model = small(rank_weight=0.0, autoencoder_weight=8.0)
    x = torch.randn(12, 2, generator=generator(1))
    loss, logs = model.loss("critic", Batch(x), generator(4))
    samples = model.generator(model.noise(12, generator(4)))
    errors = [(model.decoder(model.critic(v)) - v).square().mean() for v in (x, samples)]
    assert logs["squared_error"].item() == pytest.approx(sum(errors).item(), rel=1e-5)
    assert loss.item() == pytest.approx(8 * sum(errors).item() - logs["mmd2"].item() ** 0.5, rel=1e-4)


def test_weights_stay_within_the_bound_and_five_critic_steps_go_before_one_of_the_generator():
    model = small(clip=0.05)
    with torch.no_grad():
        for p in model.critic.parameters():
            p.mul_(100)
    x = Batch(torch.randn(6, 2))
    decoder = [p.clone() for p in model.decoder.parameters()]
    model.after_step("critic", x, generator())
    assert max(p.abs().max().item() for p in model.critic.parameters()) <= 0.05 + 1e-8
    assert all(torch.equal(p, q) for p, q in zip(model.decoder.parameters(), decoder, strict=True))
    stage = model.stages()[0]
    turns = [tuple(model.turn(step, stage)) for step in range(10)]
    assert turns == [*[("critic",)] * 4, ("critic", "generator")] * 2


def test_the_witness_is_the_difference_of_kernel_means_and_its_penalty_by_finite_differences():
    model = small(regulariser="gradient_penalty", bandwidths=(1.0,))
    x, y = torch.randn(5, 2, generator=generator(1)), torch.randn(7, 2, generator=generator(2))
    real, fake = model.critic(x), model.critic(y)
    witness = model.witness(real, fake)
    u = torch.randn(3, 2, generator=generator(3))
    f = model.critic(u)
    k = lambda a, b: torch.exp(-0.5 * (a - b).square().sum())
    for i in range(3):
        direct = sum(k(f[i], a) for a in real) / 5 - sum(k(f[i], b) for b in fake) / 7
        assert witness(u)[i].item() == pytest.approx(direct.item(), abs=1e-6)
    loss, logs = model.loss("critic", Batch(x), generator(5))
    plain, _ = small(bandwidths=(1.0,)).loss("critic", Batch(x), generator(5))
    assert logs["penalty"] > 0
    assert loss.item() == pytest.approx(plain.item() + logs["penalty"].item(), rel=1e-4)


def test_learns_two_clusters():
    noise = generator()
    centres = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    x = centres[torch.randint(2, (1000,), generator=noise)] + 0.15 * torch.randn(1000, 2, generator=noise)
    torch.manual_seed(0)
    model = MmdGan(PLANE, hidden_sizes=(32, 32), latent=2, code=4, regulariser="gradient_penalty")
    judge = Gmmn(PLANE, latent=2, hidden_sizes=(4,))
    judge.initialise(Batch(x), noise)
    before = judge.discrepancy(x, model.sample(1000, generator=noise)).u_statistic.item()
    optimisers = {name: torch.optim.Adam(p, lr=2e-3, betas=(0.5, 0.9)) for name, p in model.players().items()}
    for step in range(350):
        batch = Batch(x[torch.randint(1000, (64,), generator=noise)])
        for player in model.turn(step, model.stages()[0]):
            optimisers[player].zero_grad()
            model.loss(player, batch, noise)[0].backward()
            optimisers[player].step()
            model.after_step(player, batch, noise)
    after = judge.discrepancy(x, model.sample(1000, generator=noise)).u_statistic.item()
    assert after < 0.4 * before


@pytest.mark.parametrize(("spec", "net"), [(DIGITS, "mlp"), (DataSpec((1, 16, 16), "discrete", levels=17), "dcgan")])
def test_shapes(spec, net):
    model = MmdGan(spec, net=net, channels=4, hidden_sizes=(8,))
    x = Batch(torch.randint(17, (6, *spec.shape)).byte())
    for player in ("critic", "generator"):
        model.loss(player, x, generator())[0].backward()
        model.after_step(player, x, generator())
    model.eval()
    assert model.sample(5).shape == (5, *spec.shape)
    assert model.encode(x.x).shape == (6, 16)
    assert model.reconstruct(x.x).shape == x.x.shape


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"n_critic": 0}, "n_critic=0"), ({"clip": 0.0}, "clip=0.0"), ({"bandwidths": (0.0,)}, "bandwidths=")],
)
def test_wrong_arguments_are_explained(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        small(**settings)

"""Parts of models of pictures of captions: the KL in closed form, embeddings that match, judges of pairs."""

import math

import pytest
import torch
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.adversarial_captions import (
    CaptionEmbedding,
    ConditioningAugmentation,
    PairDiscriminator,
    Seed,
    captions_of,
    doublings,
)

CAPTIONS = DataSpec((5,), "tokens", 6, end=0)
SPEC = DataSpec((3, 16, 16), "discrete", levels=256, given=CAPTIONS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_augmentation_draws_the_gaussian_whose_kl_it_gives() -> None:
    """KL = 1/2 sum (mu^2 + sigma^2 - 1 - log sigma^2), the mean over the batch; moments of many draws."""
    torch.manual_seed(0)
    augmentation, phi = ConditioningAugmentation(4, 3), torch.randn(2, 4)
    mean, log_variance = augmentation.moments(phi).chunk(2, 1)
    wanted = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
    c, kl = augmentation.draw(phi.repeat(20_000, 1), seeded())
    torch.testing.assert_close(kl, wanted)
    draws = c.view(-1, 2, 3)
    se = (0.5 * log_variance).exp() / math.sqrt(len(draws))
    assert ((draws.mean(0) - mean).abs() < 4 * se).all()
    torch.testing.assert_close(draws.var(0).log(), log_variance, atol=4 * math.sqrt(2 / len(draws)), rtol=0)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    p = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(q, p).sum(1).mean())


def test_the_embeddings_loss_by_hand_and_at_chance() -> None:
    torch.manual_seed(0)
    net = CaptionEmbedding(SPEC, embedding=4, width=3, channels=2)
    x, captions = torch.randn(3, 3, 16, 16), torch.tensor([[1, 2, 0, 0, 0], [3, 0, 0, 0, 0], [4, 5, 1, 2, 0]])
    v, phi = net.viewer(x), net.reader(captions)
    total = 0.0
    for i in range(3):
        to_captions = [net.log_scale.exp() * F.cosine_similarity(v[i], phi[j], dim=0) for j in range(3)]
        to_pictures = [net.log_scale.exp() * F.cosine_similarity(v[j], phi[i], dim=0) for j in range(3)]
        for scores in (torch.stack(to_captions), torch.stack(to_pictures)):
            total = total + scores.logsumexp(0) - scores[i]
    torch.testing.assert_close(net.loss(x, captions), total / 6)
    alike = net.loss(x[:1].expand(3, -1, -1, -1), captions[:1].expand(3, -1))
    torch.testing.assert_close(alike, torch.tensor(math.log(3)))
    torch.testing.assert_close(net(captions).square().sum(1), torch.full((3,), 4.0))


def test_what_follows_a_captions_end_does_not_count() -> None:
    torch.manual_seed(0)
    net = CaptionEmbedding(SPEC, embedding=4, width=3, channels=2)
    a, b = torch.tensor([[1, 2, 0, 0, 0]]), torch.tensor([[1, 2, 0, 5, 4]])
    assert torch.equal(net(a), net(b))
    assert not torch.equal(net(a), net(torch.tensor([[2, 1, 0, 0, 0]])))  # but the order of words does


def test_judges_of_pairs_see_picture_and_caption_and_judges_alone_the_picture() -> None:
    torch.manual_seed(0)
    judge = PairDiscriminator(SPEC, side=16, channels=2, embedding=4, condition=3, alone=True, bias=True).eval()
    x, phi = torch.randn(2, 3, 16, 16, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    features = judge.features(x)
    assert features.shape == (2, 4, 4, 4)
    planes = judge.compress(phi)[:, :, None, None].expand(-1, -1, 4, 4)
    pair = judge.pair(features, phi)
    torch.testing.assert_close(pair, judge.joint(torch.cat([features, planes], 1)).view(2))
    for output, wanted in ((pair, True), (judge.single(features), False)):
        assert output.shape == (2,)
        gradients = torch.autograd.grad(output.sum(), (x, phi), retain_graph=True, allow_unused=True)
        assert gradients[0] is not None
        assert (gradients[1] is not None) == wanted
    own = PairDiscriminator(SPEC, side=8, channels=2, embedding=0, condition=0, alone=True, bias=True)
    assert not hasattr(own, "joint")


def test_sides_and_captions_that_do_not_fit() -> None:
    assert [doublings(side) for side in (4, 8, 64)] == [0, 1, 4]
    assert Seed(3, side=16, channels=2)(torch.randn(2, 3)).shape == (2, 2, 16, 16)
    with pytest.raises(UserError, match="not 12"):
        doublings(12)
    with pytest.raises(UserError, match="Every picture needs a caption"):
        captions_of(DataSpec((3, 16, 16), "discrete", levels=256))
    with pytest.raises(UserError, match="must be square images"):
        captions_of(DataSpec((3, 16, 8), "discrete", levels=256, given=CAPTIONS))

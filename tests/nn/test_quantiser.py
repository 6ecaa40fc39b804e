"""The quantiser against brute force, autograd, Lloyd's algorithm, and the moving averages written out."""

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.errors import UserError
from dgmbench.nn.quantiser import Quantiser, perplexity


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def maps(n: int = 6, dim: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(n, dim, 2, 5, generator=seeded(seed), dtype=torch.float64)


def make(codes: int = 7, dim: int = 3, **settings: float | None) -> Quantiser:
    torch.manual_seed(2)
    return Quantiser(codes, dim, **settings).double()  # type: ignore[arg-type]


def test_the_nearest_code_is_that_of_brute_force() -> None:
    quantiser, z = make(), maps()
    index = quantiser(z).code
    vectors = z.permute(0, 2, 3, 1)
    for place in torch.cartesian_prod(torch.arange(6), torch.arange(2), torch.arange(5)):
        b, h, w = place.tolist()
        distances = [(vectors[b, h, w] - code).norm().item() for code in quantiser.book]
        assert index[b, h, w].item() == min(range(7), key=distances.__getitem__)
    assert len(index.unique()) > 3


def test_values_are_the_codes_and_gradients_pass_as_if_they_were_the_vectors() -> None:
    quantiser, z = make(), maps().requires_grad_(True)
    straight = quantiser(z).straight
    torch.testing.assert_close(straight, quantiser.lookup(quantiser(z).code))
    weight = torch.randn(straight.shape, generator=seeded(), dtype=torch.float64)
    (found,) = torch.autograd.grad((straight * weight).sum(), z)
    assert torch.equal(found, weight), "the gradient of what follows, unchanged"


def test_the_codebook_loss_moves_the_codes_alone_and_the_commitment_the_vectors_alone() -> None:
    quantiser, z = make(decay=None), maps().requires_grad_(True)
    out = quantiser(z)
    e = quantiser.lookup(out.code)
    torch.testing.assert_close(out.commitment, (z - e).square().sum((1, 2, 3)))
    torch.testing.assert_close(out.codebook, out.commitment)
    to_z, to_book = torch.autograd.grad(out.commitment.sum(), [z, quantiser.book], allow_unused=True, retain_graph=True)
    assert to_book is None
    torch.testing.assert_close(to_z, 2 * (z - e).detach())
    to_z, to_book = torch.autograd.grad(out.codebook.sum(), [z, quantiser.book], allow_unused=True)
    assert to_z is None
    vectors = z.detach().movedim(1, -1).flatten(0, -2)
    wanted = torch.stack([2 * (c - vectors[out.code.flatten() == i]).sum(0) for i, c in enumerate(quantiser.book)])
    torch.testing.assert_close(to_book, wanted.detach())


def test_a_moving_average_of_decay_0_is_one_step_of_lloyds_algorithm() -> None:
    quantiser, z = make(decay=0.0, restart=0.0), maps()
    with torch.no_grad():
        quantiser.book[6] = 100.0  # so far off that it is nobody's nearest, and keeps its place
    before, index = quantiser.book.clone(), quantiser(z).code.flatten()
    vectors = z.movedim(1, -1).flatten(0, -2)
    quantiser.follow(z, seeded())
    for i in range(7):
        own = vectors[index == i]
        torch.testing.assert_close(quantiser.book[i], own.mean(0) if len(own) else before[i])
    assert torch.equal(quantiser.book[6], before[6])


def test_the_averages_are_those_of_the_formula() -> None:
    quantiser = make(decay=0.9, restart=0.0)
    counts, sums = torch.ones(7, dtype=torch.float64), quantiser.book.clone()
    for step in range(5):
        z = maps(seed=step)
        index, vectors = quantiser(z).code.flatten(), z.movedim(1, -1).flatten(0, -2)
        for i in range(7):
            counts[i] = 0.9 * counts[i] + 0.1 * (index == i).sum()
            sums[i] = 0.9 * sums[i] + 0.1 * vectors[index == i].sum(0)
        quantiser.follow(z, seeded(step))
        torch.testing.assert_close(quantiser.book, sums / counts[:, None])


def test_codes_that_nobody_uses_start_anew_at_vectors_of_the_batch() -> None:
    quantiser, z = make(codes=5, decay=0.5, restart=1.5), maps()
    quantiser.start(z, seeded())
    with torch.no_grad():
        quantiser.book[3] = 50.0
        quantiser.sums[3] = 50.0 * quantiser.counts[3]
    before = quantiser.book.clone()
    quantiser.follow(z, seeded(4))
    vectors = z.movedim(1, -1).flatten(0, -2)
    assert (vectors == quantiser.book[3]).all(1).any(), "a vector of the batch"
    assert quantiser.counts[3] == 1.5
    assert not (before == quantiser.book).all(1).any(), "the others move by their averages"
    assert (quantiser(z).code == 3).any()


def test_perplexity() -> None:
    assert perplexity(torch.arange(8).repeat(3), 8).item() == pytest.approx(8)
    assert perplexity(torch.zeros(4, dtype=torch.int64), 8).item() == 1
    assert perplexity(torch.tensor([0, 0, 0, 5]), 8).item() == pytest.approx(4 / 3**0.75)


@pytest.mark.parametrize(
    ("settings", "words"), [({"codes": 0}, "codes=0"), ({"decay": 1.0}, "decay=1.0"), ({"restart": -1.0}, "restart=-1")]
)
def test_sizes_that_are_none_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Quantiser(**{"codes": 4, "dim": 2, **settings})  # type: ignore[arg-type]

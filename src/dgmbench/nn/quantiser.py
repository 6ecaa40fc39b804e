r"""Vector quantisation: every vector of a map becomes the nearest of K codes, and gradients pass as if it had not.

    i(z) = argmin_i |z - e_i|^2,      forward: e_i(z),      backward: the gradient of e_i(z) is handed to z as it is.

The codes follow the vectors in one of two ways. By a *moving average* (``decay``), with n_i of a batch's vectors next
to code i,

    N_i <- decay N_i + (1 - decay) n_i,    m_i <- decay m_i + (1 - decay) sum_{z next to i} z,    e_i = m_i / N_i,

which at decay 0 is one step of Lloyd's algorithm; a code whose N_i is below ``restart`` starts anew at a vector of the
batch. Or by a gradient (``decay=None``): the codes are a parameter, and |sg(z) - e|^2 moves them.

Papers: van den Oord, Vinyals, Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017,
https://arxiv.org/abs/1711.00937 (the moving average in appendix A.1); restarts: Dhariwal et al., "Jukebox", 2020,
https://arxiv.org/abs/2005.00341.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from dgmbench.errors import require


class Quantised(NamedTuple):
    """What becomes of a map z (b, d, h, w)."""

    code: Int[Tensor, "b h w"]
    straight: Float[Tensor, "b d h w"]
    """The codes, whose gradient is that of z."""
    commitment: Float[Tensor, " b"]
    """|z - sg(e)|^2, summed over the map: it moves the vectors alone."""
    codebook: Float[Tensor, " b"]
    """|sg(z) - e|^2, summed over the map: it moves the codes alone, if they have a gradient."""


class Quantiser(nn.Module):
    """A code book of K vectors.

    Args:
        codes: K.
        dim: of a vector.
        decay: of the moving averages; None: the codes are a parameter.
        restart: vectors a batch (N_i) below which a code starts anew; 0 never.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, dim: int, *, decay: float | None = 0.99, restart: float = 1.0) -> None:
        super().__init__()
        require(least=1, codes=codes, code_dim=dim)
        require(least=0, below=1, decay=decay)
        require(least=0, restart=restart)
        self.decay, self.restart = decay, restart
        start = torch.randn(codes, dim) / dim**0.5
        if decay is None:
            self.book = nn.Parameter(start)
            return
        self.register_buffer("book", start)
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", start.clone())

    def nearest(self, vectors: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The number of the nearest code, by one matrix product."""
        return torch.addmm(self.book.square().sum(1), vectors, self.book.T, beta=0.5, alpha=-1.0).argmin(1)

    def lookup(self, index: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """The codes of a map of numbers."""
        return self.book[index].movedim(-1, 1)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantised:
        """Quantise a map."""
        index = self.nearest(_vectors(z.detach())).view(len(z), *z.shape[2:])
        e = self.lookup(index)
        straight = z + (e - z).detach()
        commitment, codebook = (z - e.detach()).square(), (z.detach() - e).square()
        return Quantised(index, straight, commitment.flatten(1).sum(1), codebook.flatten(1).sum(1))

    @torch.no_grad()
    def start(self, z: Float[Tensor, "b d h w"], generator: Generator) -> None:
        """Put the codes on vectors of a map, drawn at random."""
        self.book.copy_(_some(_vectors(z), len(self.book), generator))
        if self.decay is not None:
            self.sums.copy_(self.book * self.counts[:, None])

    @torch.no_grad()
    def follow(self, z: Float[Tensor, "b d h w"], generator: Generator) -> None:
        """Move the averages, and the codes with them, towards a batch's vectors; restart codes that nobody uses."""
        if self.decay is None:
            return
        vectors = _vectors(z)
        index = self.nearest(vectors)
        counts = torch.bincount(index, minlength=len(self.book)).to(self.counts)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, index, vectors), 1 - self.decay)
        used = self.counts[:, None] > 0
        self.book.copy_(torch.where(used, self.sums / self.counts[:, None].clamp(min=1e-12), self.book))
        dead = (self.counts < self.restart)[:, None]
        fresh = _some(vectors, len(self.book), generator)
        self.book.copy_(torch.where(dead, fresh, self.book))
        self.counts.copy_(torch.where(dead[:, 0], self.counts.clamp(min=self.restart), self.counts))
        self.sums.copy_(torch.where(dead, self.book * self.counts[:, None], self.sums))


def perplexity(index: Int[Tensor, "..."], codes: int) -> Float[Tensor, ""]:
    """exp of the entropy of the codes' frequencies: K if all are equally frequent."""
    share = torch.bincount(index.flatten(), minlength=codes) / index.numel()
    return torch.special.entr(share).sum().exp()


def _vectors(z: Float[Tensor, "b d h w"]) -> Float[Tensor, "n d"]:
    return z.movedim(1, -1).flatten(0, -2)


def _some(vectors: Float[Tensor, "n d"], k: int, generator: Generator) -> Float[Tensor, "k d"]:
    """k of the vectors, drawn at random with replacement."""
    return vectors[torch.randint(len(vectors), (k,), generator=generator, device=vectors.device)]

"""What quantised models share: residual networks between a picture and a map of vectors, two stages, and a bound.

An encoder halves the sides by strided convolutions (rounding up), a decoder walks the same sizes back; residual blocks
are ReLU, 3 x 3, ReLU, 1 x 1, as in the papers of VQ-VAE. Maps are (b, c, h, w).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Facts, Logs, Model, Stage
from dgmbench.nn.observation import Observation
from dgmbench.nn.quantiser import Quantised, Quantiser, perplexity
from dgmbench.nn.scaling import Scaling

Size = tuple[int, int]


def halved(size: Size, times: int) -> list[Size]:
    """The sizes of a map that is halved so many times, the first one's included."""
    sizes = [size]
    for _ in range(times):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


class Residual(nn.Module):
    """h + W relu(V * relu(h))."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.wide, self.up = nn.Conv2d(channels, inner, 3, padding=1), nn.Conv2d(inner, channels, 1)

    def forward(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """One block."""
        out: Tensor = h + self.up(self.wide(h.relu()).relu())
        return out


class ShrinkingNet(nn.Module):
    """Maps (b, inputs, H, W) -> (b, channels, h, w), halved ``halvings`` times, through residual blocks."""

    def __init__(self, inputs: int, channels: int, *, halvings: int, blocks: int) -> None:
        super().__init__()
        widths = [inputs, *[max(channels // 2, 1)] * (halvings - 1), channels]
        self.reduce = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.rest = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), *(Residual(channels, channels) for _ in range(blocks))
        )

    def forward(self, x: Float[Tensor, "b i H W"]) -> Float[Tensor, "b c h w"]:
        """Features of a map; those of an odd side see a row of zeros more."""
        for conv in self.reduce:
            x = conv(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))).relu()
        out: Tensor = self.rest(x).relu()
        return out


class GrowingNet(nn.Module):
    """Maps (b, inputs, h, w) -> (b, outputs, H, W): residual blocks, then as many doublings as ``sizes`` has steps.

    ``sizes`` are those of ``halved``, the largest first.
    """

    def __init__(self, inputs: int, outputs: int, channels: int, *, sizes: Sequence[Size], blocks: int) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.rest = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, padding=1), *(Residual(channels, channels) for _ in range(blocks))
        )
        widths = [channels, *[max(channels // 2, 1)] * (len(sizes) - 2), outputs]
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))

    def forward(self, z: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o H W"]:
        """The map of the full size."""
        h = self.rest(z)
        for conv, (height, width) in zip(self.enlarge, reversed(self.sizes[:-1]), strict=True):
            h = conv(h.relu())[:, :, :height, :width]
        out: Tensor = h
        return out


class Level(NamedTuple):
    """One level's vectors (b, d, h, w), and what the quantiser makes of them."""

    vectors: Float[Tensor, "b d h w"]
    quantised: Quantised


Maps = Mapping[str, Tensor]
"""For each level by its name: names of codes (b, h, w), or codes (b, d, h, w)."""


class QuantisedVae(Model, ABC):
    """An autoencoder with code books, and a prior of their names as the second stage.

    A subclass sets ``encoder``, ``decoder`` and ``prior`` (whatever modules they are), ``quantisers`` and ``sizes`` by
    the levels' names, in the order in which codes are started, and ``observation``; it gives the four methods below.
    """

    encoder: Any
    decoder: Any
    prior: Any
    observation: Observation
    sizes: Mapping[str, Size]

    def __init__(self, spec: DataSpec, *, commitment: float, prior_share: float) -> None:
        super().__init__(spec)
        if not spec.is_image:
            who = type(self).__name__
            raise UserError(f"{who} takes images (c, h, w), not {spec}; choose such data, as data=digits32.")
        require(least=0, commitment=commitment)
        require(above=0, below=1, prior_share=prior_share)
        self.commitment, self.prior_share = commitment, prior_share
        self.scaling = Scaling(spec)
        self.quantisers = nn.ModuleDict()

    @abstractmethod
    def levels(self, x: Float[Tensor, "b c h w"]) -> Mapping[str, Level]:
        """Every level's vectors and codes for scaled x."""

    @abstractmethod
    def observed(self, codes: Maps) -> Float[Tensor, "b pc h w"]:
        """The parameters of p(x | codes), from codes (b, d, h, w)."""

    @abstractmethod
    def log_prior(self, names: Maps) -> Float[Tensor, " b"]:
        """Log p(names)."""

    @abstractmethod
    def sample_names(self, n: int, generator: Generator | None) -> Maps:
        """Names of n examples from the prior."""

    @property
    def code_books(self) -> dict[str, int]:
        """How many codes each book has."""
        return {name: len(self.quantiser(name).book) for name in self.quantisers}

    def quantiser(self, name: str) -> Quantiser:
        """The quantiser of a level."""
        found = self.quantisers[name]
        assert isinstance(found, Quantiser)
        return found

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The autoencoder, with its books if those have a gradient, and the prior."""
        own = [p for part in (self.encoder, self.quantisers, self.decoder) for p in part.parameters()]
        return {"autoencoder": own, "prior": list(self.prior.parameters())}

    def stages(self) -> tuple[Stage, ...]:
        """The autoencoder, then the prior of its codes."""
        return Stage("codes", ("autoencoder",), 1 - self.prior_share), Stage("prior", ("prior",), self.prior_share)

    def prepare(self, facts: Facts) -> None:
        """Refuse a book larger than the data: more codes than vectors to put them on."""
        for name, codes in self.code_books.items():
            places = self.sizes[name][0] * self.sizes[name][1]
            if codes > facts.examples * places:
                raise UserError(
                    f"model.codes={codes} is more than the {facts.examples * places} vectors of {facts.examples} "
                    f"training examples, {places} of each; take fewer codes, or more data."
                )

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Put the codes on vectors of the data, level by level."""
        for name in self.quantisers:
            self.quantiser(name).start(self._levels(batch.x[:500])[name].vectors, generator)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The autoencoder's loss, or the prior's."""
        if player == "prior":
            nll = -self.log_prior(self.code_maps(batch.x)).mean()
            return nll, {"log_prior": -nll.detach()}
        levels = self._levels(batch.x)
        straight = {name: level.quantised.straight for name, level in levels.items()}
        reconstruction = self._log_likelihood(batch.x, straight).mean()
        loss, logs = -reconstruction, {"reconstruction": reconstruction.detach()}
        for name, (_, quantised) in levels.items():
            commitment = quantised.commitment.mean()
            loss = loss + self.commitment * commitment
            if self.quantiser(name).decay is None:
                loss = loss + quantised.codebook.mean()
            logs[f"{name}_commitment"] = commitment.detach()
            logs[f"{name}_perplexity"] = perplexity(quantised.code, self.code_books[name])
        return loss, logs

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Let the codes follow the encoder's vectors."""
        if player == "autoencoder":
            for name, level in self._levels(batch.x).items():
                self.quantiser(name).follow(level.vectors, generator)

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """The bound of raw x (b, c, h, w), which has no noise."""
        names = self.code_maps(x)
        return self._log_likelihood(x, self._codes(names)) + self.log_prior(names)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples, raw (n, c, h, w): maps of codes from the prior, then x."""
        parameters = self._parted(self.observed(self._codes(self.sample_names(n, generator))))
        return self.observation.sample(parameters, generator=generator)

    @torch.no_grad()
    def code_maps(self, x: Tensor) -> dict[str, Tensor]:
        """The names (b, h, w) that raw x (b, c, h, w) gets from each book."""
        return {name: level.quantised.code for name, level in self._levels(x).items()}

    def encode(self, x: Tensor) -> Float[Tensor, "b z"]:
        """The codes of raw x (b, c, h, w), all levels side by side."""
        return torch.cat([each.flatten(1) for each in self._codes(self.code_maps(x)).values()], 1)

    def decode(self, code: Float[Tensor, "b z"]) -> Tensor:
        """E[x | vectors], float (b, c, h, w) on the raw scale; vectors that no code has are decoded as they are."""
        shapes = {name: (self.quantiser(name).book.shape[1], *self.sizes[name]) for name in self.quantisers}
        parts = code.split([d * h * w for d, h, w in shapes.values()], 1)
        codes = {name: part.unflatten(1, shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return self.observation.mean(self._parted(self.observed(codes)))

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """E[x | codes of x], float (b, c, h, w) on the raw scale."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def panels(self, batch: Batch, *, generator: Generator | None = None) -> Float[Tensor, "b k c h w"]:
        """The example, its reconstruction, with several levels that from each alone, and each level's map of codes.

        Levels that are left out have the mean of the batch's codes in every place. In a map near codes have near greys:
        a code's grey is its rank along the direction in which those of its book vary most.
        """
        maps = self.code_maps(batch.x)
        codes = self._codes(maps)
        mean = {name: each.mean((0, 2, 3), keepdim=True).expand_as(each) for name, each in codes.items()}
        kept = [codes, *({**mean, name: codes[name]} for name in codes if len(codes) > 1)]
        found = [self.observation.mean(self._parted(self.observed(each))) for each in kept]
        lowest, highest = float(batch.x.min()), float(batch.x.max())
        for name, names in maps.items():
            book = self.quantiser(name).book
            direction = torch.linalg.svd(book - book.mean(0), full_matrices=False)[2][0]
            rank = (book @ direction).argsort().argsort().to(found[0]) / (len(book) - 1)
            grey = F.interpolate(rank[names][:, None], self.spec.shape[1:])
            found.append((lowest + (highest - lowest) * grey).expand_as(found[0]))
        return torch.stack([batch.x.to(found[0]), *found], 1)

    def _levels(self, x: Tensor) -> Mapping[str, Level]:
        return self.levels(self.scaling(x).to(next(self.encoder.parameters()).dtype))

    def _codes(self, names: Maps) -> dict[str, Tensor]:
        return {name: self.quantiser(name).lookup(index) for name, index in names.items()}

    def _log_likelihood(self, x: Tensor, codes: Maps) -> Float[Tensor, " b"]:
        return self.observation.log_prob(self._parted(self.observed(codes)), x)

    def _parted(self, parameters: Float[Tensor, "b pc h w"]) -> Float[Tensor, "b p c h w"]:
        return parameters.unflatten(1, (self.observation.parameters_per_dim, -1))

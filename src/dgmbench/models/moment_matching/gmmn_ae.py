"""GMMN on the codes of an autoencoder: moments are matched where the data are few-dimensional and smooth.

In pixels, distances say little and the kernel mean needs many examples; in the code space of an autoencoder they say
more, and the decoder turns a generated code into an image. The training runs in parts:

    layer_l     one autoencoder with one hidden layer on the codes below it (greedy),
    fine_tune   the whole autoencoder,          loss = E |x - D(E(x))|^2, summed over dimensions,
    match       the generator,                  loss = sqrt(MMD^2(E(x), G(z))) as in ``gmmn``, the autoencoder frozen.

Samples are D(G(z)), z uniform on [-1, 1]. In the first two parts each layer of the encoder drops inputs at the rate
``dropout``, which keeps the codes of similar images near each other.

Shapes and units: raw x (b, *shape), scaled to [-1, 1] (``real`` data pass unchanged); codes (b, code) in (0, 1);
squared errors per example, in squared scaled units.

Paper: Li, Swersky, Zemel, "Generative Moment Matching Networks", ICML 2015, https://arxiv.org/abs/1502.02761 (section
4.2 and figure 1b).

What differs: Adam for all parts; bandwidths are multiples of the median distance between codes, measured as the last
part begins; the decoder ends in tanh on [-1, 1] in place of a sigmoid.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.contract import Logs, Stage
from dgmbench.models.moment_matching.matching import MomentMatching
from dgmbench.nn.adversarial import hidden_layers
from dgmbench.nn.scaling import Scaling

EXAMPLES = 1000  # whose codes give the unit of the bandwidths


class GmmnAe(MomentMatching):
    """GMMN in the code space of a greedily pre-trained, frozen autoencoder (Li, Swersky, Zemel 2015).

    Args:
        spec: the data's space.
        encoder_sizes: units of the encoder's layers, the code last; the decoder has them in reverse.
        dropout: share of the inputs of each layer that are dropped while the autoencoder trains.
        latent, hidden_sizes, bandwidths, square_root, block: as of ``Gmmn``; the generator makes codes.
    """

    examples: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        encoder_sizes: Sequence[int] = (1024, 32),
        dropout: float = 0.1,
        latent: int = 10,
        hidden_sizes: Sequence[int] = (64, 256, 256, 1024),
        bandwidths: Sequence[float] = (0.125, 0.25, 0.5, 1.0, 2.0),
        square_root: bool = True,
        block: int = 1024,
    ) -> None:
        super().__init__(spec, latent=latent, bandwidths=bandwidths, square_root=square_root, block=block)
        require(least=1, encoder_sizes=encoder_sizes, hidden_sizes=hidden_sizes)
        require(least=0, below=1, dropout=dropout)
        self.scaling, self.dropout = Scaling(spec), dropout
        sizes = list(pairwise((spec.dim, *encoder_sizes)))
        self.encoder = nn.ModuleList(nn.Linear(below, above) for below, above in sizes)
        self.decoder = nn.ModuleList(nn.Linear(above, below) for below, above in sizes)  # of the same layers
        widths = [latent, *hidden_sizes]
        self.generator = nn.Sequential(
            *hidden_layers(widths), nn.Linear(widths[-1], tuple(encoder_sizes)[-1]), nn.Sigmoid()
        )
        self.register_buffer("examples", torch.zeros(EXAMPLES, *spec.shape, dtype=spec.dtype))

    # ---- the autoencoder ----

    def up(self, layer: int, below: Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
        """The codes of layer ``layer`` (from 0) at those below it, in (0, 1)."""
        return torch.sigmoid(cast(nn.Linear, self.encoder[layer])(below))

    def down(self, layer: int, above: Float[Tensor, "b m"]) -> Float[Tensor, "b n"]:
        """Back from the codes of layer ``layer``; layer 0 gives scaled data, flat."""
        a = cast(nn.Linear, self.decoder[layer])(above)
        if layer > 0:
            return torch.sigmoid(a)
        return torch.tanh(a) if self.scaling.bounded else a

    def dropped(self, h: Tensor, generator: Generator) -> Tensor:
        """Return h with some inputs dropped and the others enlarged to make up for it."""
        if not self.dropout:
            return h
        keep = torch.rand(h.shape, generator=generator, device=h.device, dtype=h.dtype) >= self.dropout
        return h * keep / (1 - self.dropout)

    def codes(self, x: Tensor, layers: int | None = None) -> Float[Tensor, "b code"]:
        """Codes of raw x (b, *shape) after the first ``layers`` layers, by default all; nothing is dropped."""
        h = self.scaling(x).flatten(1)
        for layer in range(len(self.encoder) if layers is None else layers):
            h = self.up(layer, h)
        return h

    def decoded(self, code: Float[Tensor, "b code"]) -> Float[Tensor, " b *shape"]:
        """Scaled data of codes."""
        for layer in reversed(range(len(self.decoder))):
            code = self.down(layer, code)
        return code.view(-1, *self.spec.shape)

    # ---- training ----

    def players(self) -> dict[str, list[nn.Parameter]]:
        """Every layer's autoencoder by itself, all of them together, and the generator."""
        layers = {
            f"layer_{i}": [*up.parameters(), *down.parameters()]
            for i, (up, down) in enumerate(zip(self.encoder, self.decoder, strict=True), start=1)
        }
        whole = [*self.encoder.parameters(), *self.decoder.parameters()]
        return {**layers, "autoencoder": whole, "generator": list(self.generator.parameters())}

    def stages(self) -> tuple[Stage, ...]:
        """The layers from the data upwards, the whole autoencoder, then the generator."""
        count = len(self.encoder)
        greedy = [
            Stage(f"layer_{i + 1}", (f"layer_{i + 1}",), 1.0 / count, view=self._view(i) if i else None)
            for i in range(count)
        ]
        return (*greedy, Stage("fine_tune", ("autoencoder",), 1.0), Stage("match", ("generator",), 2.0))

    def _view(self, layers: int) -> Callable[[Batch, Generator], Batch]:
        """The view of data from above the first ``layers`` layers."""

        @torch.no_grad()
        def view(batch: Batch, generator: Generator) -> Batch:
            return batch._replace(x=self.codes(batch.x, layers))

        return view

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Keep examples (drawn with replacement), whose codes give the unit of the bandwidths later."""
        chosen = torch.randint(len(batch.x), (EXAMPLES,), generator=generator, device=batch.x.device)
        self.examples.copy_(batch.x[chosen])

    @torch.no_grad()
    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Measure the unit of the bandwidths once the codes are final."""
        if stage.name == "match":
            self.measure_scale(self.codes(self.examples))

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The squared error of an autoencoder, or the MMD between codes of the batch and as many generated ones."""
        if player == "generator":
            with torch.no_grad():
                codes = self.codes(batch.x)
            squared, unbiased = self.discrepancy(codes, self.generator(self.noise(len(batch.x), generator)))
            return self.objective(squared), {"mmd2": squared.detach(), "mmd2_unbiased": unbiased.detach()}
        if player == "autoencoder":
            target = self.scaling(batch.x).flatten(1)
            layers = range(len(self.encoder))
        else:
            layer = int(player.removeprefix("layer_")) - 1
            target = batch.x if layer else self.scaling(batch.x).flatten(1)
            layers = range(layer, layer + 1)
        h = target
        for layer in layers:
            h = self.up(layer, self.dropped(h, generator))
        for layer in reversed(layers):
            h = self.down(layer, h)
        error = F.mse_loss(h, target, reduction="sum") / len(target)
        return error, {"squared_error": error.detach()}

    # ---- use ----

    @torch.no_grad()
    def encode(self, x: Tensor) -> Float[Tensor, "b code"]:
        """Codes of raw x (b, *shape)."""
        return self.codes(x)

    @torch.no_grad()
    def decode(self, code: Float[Tensor, "b code"]) -> Tensor:
        """Data of codes, float (b, *shape) on the raw scale."""
        return self.scaling.unrounded(self.decoded(code))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The decoder at the codes of raw x (b, *shape), float on the raw scale."""
        return self.decode(self.codes(x))

    def generate(self, noise: Float[Tensor, "b latent"]) -> Tensor:
        """D(G(z)), float (b, *shape) on the raw scale, of standard normal noise."""
        return self.scaling.unrounded(self.decoded(self.generator(self.uniform(noise))))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw values D(G(z)) (n, *shape), rounded to the levels if there are levels."""
        return self.scaling.inverse(self.decoded(self.generator(self.noise(n, generator))))

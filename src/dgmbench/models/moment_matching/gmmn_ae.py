"""GMMN+AE: a generator that matches moments of an autoencoder's codes, and the decoder that makes data of them.

Kernels of raw data need many samples, for data are many-dimensional and lie near a surface of few dimensions. An
autoencoder finds that surface first, layer by layer and then as a whole; its weights are fixed, and a GMMN learns the
distribution of its codes, with c the encoder, g the decoder and k a mixture of Gaussian kernels:

    layer n       min  E H(h_{n-1}, g_n(c_n(h_{n-1}))),      h_0 = x in [0, 1], h_n = c_n(h_{n-1}) of the layers below
    fine tuning   min  E H(x, g(c(x))), with dropout between the layers of c
    matching      min  MMD(c(x), G(z)) or its square,         z uniform on [-1, 1]; c and g do not move

H(a, p) = -sum_i a_i log p_i + (1 - a_i) log(1 - p_i). Codes lie in [0, 1], for all layers are sigmoid, the last of G
too. A sample is g(G(z)).

Shapes and units: raw x (b, *shape), scaled to [0, 1]; codes (b, code); z (b, latent). H in nats, MMD without unit.

Paper: Li, Swersky, Zemel, "Generative Moment Matching Networks", ICML 2015, section 3.3,
https://arxiv.org/abs/1502.02761.

What differs: as for ``gmmn``, bandwidths are multiples of the codes' median distance, the hidden layers of G have leaky
ReLU and Adam is the optimiser.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Stage
from dgmbench.models.moment_matching.matching import MomentMatching
from dgmbench.nn.adversarial import MlpGenerator
from dgmbench.nn.scaling import Scaling

EXAMPLES = 1000  # whose codes' median distance is the unit of the bandwidths


class GmmnAe(MomentMatching):
    """Moment matching in the code space of a greedily pre-trained, frozen autoencoder (Li, Swersky, Zemel 2015).

    Args:
        spec: the data's space, bits or grey levels.
        encoder_sizes: hidden layers of the encoder below its code; the decoder mirrors them.
        code: dimensions of the code.
        dropout: share of the units of each encoder layer but the code that fine-tuning leaves out.
        pretraining: share of the budget for the autoencoder: half of it for its layers one after another, half for
            all of them together.
        latent: dimensions of the noise z.
        hidden_sizes: hidden layers of the generator of codes.
        bandwidths: of the kernels in the mixture, in units of the median distance between two codes.
        square_root: minimise the MMD in place of its square.
        block: rows and columns of the kernel matrix that are computed at once.
    """

    examples: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        encoder_sizes: Sequence[int] = (1024,),
        code: int = 32,
        dropout: float = 0.2,
        pretraining: float = 0.5,
        latent: int = 10,
        hidden_sizes: Sequence[int] = (64, 256, 256, 1024),
        bandwidths: Sequence[float] = (0.125, 0.25, 0.5, 1.0, 2.0),
        square_root: bool = True,
        block: int = 1024,
    ) -> None:
        super().__init__(spec, latent=latent, bandwidths=bandwidths, square_root=square_root, block=block)
        if spec.kind not in ("binary", "discrete"):
            raise UserError(
                f"gmmn_ae takes bits or grey levels, but these are {spec}; choose a data set such as data=digits."
            )
        require(least=1, encoder_sizes=encoder_sizes, code=code)
        if not 0 < pretraining < 1:
            raise UserError(f"model.pretraining={pretraining} must be a share of the budget between 0 and 1.")
        if not 0 <= dropout < 1:
            raise UserError(f"model.dropout={dropout} must be a share of units from 0 up to below 1.")
        self.dropout, self.pretraining = dropout, pretraining
        self.scaling = Scaling(spec, low=0.0, high=1.0)
        pairs = list(pairwise((spec.dim, *encoder_sizes, code)))
        self.encoder = nn.ModuleList(nn.Linear(below, above) for below, above in pairs)
        self.decoder = nn.ModuleList(nn.Linear(above, below) for below, above in reversed(pairs))
        self.generator = MlpGenerator(DataSpec((code,), "real"), latent=latent, hidden_sizes=tuple(hidden_sizes))
        self.register_buffer("examples", torch.zeros(EXAMPLES, spec.dim))

    # ---- the autoencoder ----

    def values(self, x: Tensor) -> Float[Tensor, "b d"]:
        """Raw x (b, *shape) as values in [0, 1], in the precision of the weights."""
        return self.scaling(x).flatten(1).to(next(self.parameters()).dtype)

    def code_of(
        self, v: Float[Tensor, "b d"], layers: int | None = None, *, generator: Generator | None = None
    ) -> Float[Tensor, "b c"]:
        """The output of the first ``layers`` layers (all: the code) at v in [0, 1]; a generator asks for dropout."""
        for n, linear in enumerate(self.encoder[:layers]):
            v = linear(v).sigmoid()
            if generator is not None and self.dropout and n < len(self.encoder) - 1:
                kept = torch.rand(v.shape, generator=generator, device=v.device) >= self.dropout
                v = v * kept / (1 - self.dropout)
        return v

    def logits_of(self, code: Float[Tensor, "b c"]) -> Float[Tensor, "b d"]:
        """Log-odds of the data given a code in [0, 1]."""
        for n, linear in enumerate(self.decoder):
            code = linear(code.sigmoid() if n else code)
        return code

    def encode(self, x: Tensor) -> Float[Tensor, "b c"]:
        """The code of raw x (b, *shape), in [0, 1]."""
        return self.code_of(self.values(x))

    def decode(self, code: Float[Tensor, "b c"]) -> Tensor:
        """Means of the data given a code, floats (b, *shape) on the raw scale."""
        return self.scaling.unrounded(self.logits_of(code).sigmoid().view(len(code), *self.spec.shape))

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Up to the code and down again, floats (b, *shape) on the raw scale."""
        return self.decode(self.encode(x))

    # ---- training ----

    def players(self) -> dict[str, list[nn.Parameter]]:
        """Each layer of the autoencoder with its mirror, all of them, and the generator of codes."""
        mirrored = zip(self.encoder, reversed(list(self.decoder)), strict=True)
        layers = {f"layer_{n}": [*up.parameters(), *down.parameters()] for n, (up, down) in enumerate(mirrored, 1)}
        whole = [*self.encoder.parameters(), *self.decoder.parameters()]
        return layers | {"autoencoder": whole, "generator": list(self.generator.parameters())}

    def stages(self) -> tuple[Stage, ...]:
        """The layers from the data upwards, the autoencoder, then its codes."""
        half, depth = self.pretraining / 2, len(self.encoder)
        greedy = [Stage(f"layer_{n}", (f"layer_{n}",), half / depth) for n in range(1, depth + 1)]
        fine_tuning = Stage("fine_tuning", ("autoencoder",), half)
        return *greedy, fine_tuning, Stage("matching", ("generator",), 1 - self.pretraining)

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Keep examples (drawn with replacement), whose codes will set the unit of the bandwidths."""
        chosen = torch.randint(len(batch.x), (EXAMPLES,), device=batch.x.device, generator=generator)
        self.examples.copy_(self.values(batch.x)[chosen])

    @torch.no_grad()
    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Measure the median distance between codes once they are final."""
        if stage.name == "matching":
            self.measure_scale(self.code_of(self.examples))

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """H of a layer or of the autoencoder, as a mean over the batch; of the generator, MMD or its square."""
        v = self.values(batch.x)
        if player == "generator":
            with torch.no_grad():
                codes = self.code_of(v)
            squared, unbiased = self.discrepancy(codes, self.codes(self.noise(len(v), generator)))
            return self.objective(squared), {"mmd2": squared.detach(), "mmd2_unbiased": unbiased.detach()}
        if player == "autoencoder":
            entropy = cross_entropy(self.logits_of(self.code_of(v, generator=generator)), v)
        else:
            n = int(player.removeprefix("layer_"))
            with torch.no_grad():
                below = self.code_of(v, n - 1)
            entropy = cross_entropy(self.decoder[-n](self.encoder[n - 1](below).sigmoid()), below)
        return entropy, {"cross_entropy": entropy.detach()}

    # ---- samples ----

    def codes(self, noise: Float[Tensor, "b latent"]) -> Float[Tensor, "b c"]:
        """G(z), codes in [0, 1]."""
        return self.generator(noise).sigmoid()

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw values g(G(z)) (n, *shape), rounded to the levels."""
        p = self.logits_of(self.codes(self.noise(n, generator))).sigmoid()
        return self.scaling.inverse(p.view(n, *self.spec.shape))

    def generate(self, noise: Float[Tensor, "b latent"]) -> Tensor:
        """g(G(z)), float (b, *shape) on the raw scale, of standard normal noise."""
        return self.decode(self.codes(self.uniform(noise)))


def cross_entropy(logits: Float[Tensor, "b d"], target: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """H(target, sigmoid(logits)), summed over the units, as a mean over the batch."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()

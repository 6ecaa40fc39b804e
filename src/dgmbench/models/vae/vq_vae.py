r"""The vector-quantised VAE: an autoencoder whose code is a map of names from a book, with a PixelCNN over the names.

The encoder's vectors are replaced by the nearest code of the book (``nn/quantiser.py``), gradients pass straight
through, and the decoder is a distribution of x. First the autoencoder is trained, then, with all else at rest, a
prior of the maps of names, p(i) = prod_t p(i_t | i_before(t)):

    loss of stage 1 = E[-log p(x | e_i(x)) + commitment |z(x) - sg(e)|^2]    (+ |sg(z) - e|^2 if codes have a gradient),
    loss of stage 2 = E[-log p(i(x))],
    elbo(x) = log p(x | e_i(x)) + log p(i(x)) <= log sum_i p(i) p(x | e_i) = log p(x),      i(x) the encoder's map.

The bound keeps one term of the sum, so it has no noise, and no importance weights could make it tighter. Before the
second stage the prior has learned nothing, and the bound is that of a prior at its start.

Shapes and units: x is raw (b, c, h, w); z and e are (b, code_dim, h', w'), sides halved ``halvings`` times; names are
(b, h', w'), 0 ... codes - 1. Likelihoods are in nats per example of raw x; squares are sums over a map.

Paper: van den Oord, Vinyals, Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017,
https://arxiv.org/abs/1711.00937.

Different from the paper: the codes follow by moving averages (its appendix A.1) unless ``decay`` is null, and those
that nobody uses start anew at vectors of the batch; they begin on vectors of the data. After each step the averages see
the batch through the new encoder. The decoder has an observation model of raw values, so that the bound is one. The
prior is the residual PixelCNN on embedded names, smaller than the paper's.
"""

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.autoregressive.raster import require_kernel
from dgmbench.models.contract import Facts, Logs, Model, Stage
from dgmbench.models.vae.code_prior import CodePrior
from dgmbench.models.vae.quantised import GrowingNet, ShrinkingNet, as_map, halved, require_enough, require_images
from dgmbench.nn.observation import ObservationName, build_observation
from dgmbench.nn.quantiser import Quantiser, perplexity
from dgmbench.nn.scaling import Scaling


class VqVae(Model):
    """VQ-VAE of images, with its prior (van den Oord, Vinyals, Kavukcuoglu 2017).

    Args:
        spec: The data space, images.
        codes: K, codes in the book.
        code_dim: Dimensions of a code.
        channels: Width of the networks.
        halvings: How often encoder and decoder halve and double the sides.
        blocks: Residual blocks of each.
        commitment: Weight of what holds the encoder's vectors near their codes (beta in the paper).
        decay: Of the moving averages that the codes follow; null: they follow a gradient.
        restart: Vectors a batch below which a code starts anew; 0 never.
        observation: p(x | code); ``auto`` goes by the kind of the data.
        sigma: Fixed standard deviation of a gaussian observation; learned if None.
        components: Logistics in the mixture of a discrete dimension.
        prior_features: Width of the prior.
        prior_blocks: Residual blocks of the prior.
        prior_kernel: Odd width of its first convolution.
        prior_share: The prior's part of the training, between 0 and 1.
    """

    def __init__(
        self, spec: DataSpec, *, codes: int = 512, code_dim: int = 64, channels: int = 256, halvings: int = 2,
        blocks: int = 2, commitment: float = 0.25, decay: float | None = 0.99, restart: float = 1.0,
        observation: ObservationName = "auto", sigma: float | None = None, components: int = 5,
        prior_features: int = 64, prior_blocks: int = 6, prior_kernel: int = 7, prior_share: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(spec)
        require_images(spec, "vq_vae")
        require(least=2, codes=codes, prior_features=prior_features)
        require(least=1, code_dim=code_dim, channels=channels, halvings=halvings, components=components)
        require(least=0, blocks=blocks, prior_blocks=prior_blocks, commitment=commitment)
        require(above=0, below=1, prior_share=prior_share)
        require_kernel("prior_kernel", prior_kernel)
        self.code_books = {"code": codes}
        self.commitment, self.prior_share = commitment, prior_share
        self.sizes = halved((spec.shape[1], spec.shape[2]), halvings)
        self.observation = build_observation(observation, spec, sigma=sigma, components=components)
        self.scaling = Scaling(spec)
        parameters = self.observation.parameters_per_dim * spec.shape[0]
        self.encoder = nn.Sequential(
            ShrinkingNet(spec.shape[0], channels, halvings=halvings, blocks=blocks), nn.Conv2d(channels, code_dim, 1)
        )
        self.quantiser = Quantiser(codes, code_dim, decay=decay, restart=restart)
        self.decoder = GrowingNet(code_dim, parameters, channels, sizes=self.sizes, blocks=blocks)
        self.prior = CodePrior(codes, features=prior_features, blocks=prior_blocks, kernel=prior_kernel)

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The autoencoder, with its book if that has a gradient, and the prior."""
        own = [*self.encoder.parameters(), *self.quantiser.parameters(), *self.decoder.parameters()]
        return {"autoencoder": own, "prior": list(self.prior.parameters())}

    def stages(self) -> tuple[Stage, ...]:
        """The autoencoder, then the prior of its codes."""
        return (
            Stage("codes", ("autoencoder",), 1 - self.prior_share),
            Stage("prior", ("prior",), self.prior_share),
        )

    def prepare(self, facts: Facts) -> None:
        """Refuse a book larger than the data."""
        height, width = self.sizes[-1]
        require_enough(facts, len(self.quantiser.book), height * width)

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Put the codes on vectors of the data."""
        self.quantiser.start(self._vectors(batch.x[:500]), generator)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The autoencoder's loss, or the prior's."""
        if player == "prior":
            nll = -self.prior.log_prob(self.codes(batch.x)).mean()
            return nll, {"log_prior": -nll.detach()}
        z = self.quantiser(self._vectors(batch.x))
        reconstruction = self.observation.log_prob(self._observed(z.straight), batch.x).mean()
        loss = self.commitment * z.commitment.mean() - reconstruction
        if self.quantiser.decay is None:
            loss = loss + z.codebook.mean()
        used = perplexity(z.code, len(self.quantiser.book))
        logs = {"reconstruction": reconstruction.detach(), "commitment": z.commitment.detach().mean()}
        return loss, {**logs, "perplexity": used}

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Let the codes follow the encoder's vectors."""
        if player == "autoencoder":
            self.quantiser.follow(self._vectors(batch.x), generator)

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """The bound of raw x (b, c, h, w), which has no noise."""
        index = self.codes(x)
        parameters = self._observed(self.quantiser.lookup(index))
        return self.observation.log_prob(parameters, x) + self.prior.log_prob(index)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples, raw (n, c, h, w): a map of codes from the prior, then x."""
        index = self.prior.sample(n, self.sizes[-1], generator=generator)
        return self.observation.sample(self._observed(self.quantiser.lookup(index)), generator=generator)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Int[Tensor, "b h w"]:
        """The names of the codes of raw x (b, c, h, w)."""
        return self.quantiser(self._vectors(x)).code

    def code_maps(self, x: Tensor) -> dict[str, Tensor]:
        """The names that raw x (b, c, h, w) gets from the book."""
        return {"code": self.codes(x)}

    def encode(self, x: Tensor) -> Float[Tensor, "b z"]:
        """The quantised vectors of raw x (b, c, h, w), flat."""
        return self.quantiser.lookup(self.codes(x)).flatten(1)

    def decode(self, code: Float[Tensor, "b z"]) -> Tensor:
        """E[x | vectors], float (b, c, h, w) on the raw scale; vectors that no code has are decoded as they are."""
        return self.observation.mean(self._observed(as_map(code, self.quantiser.book.shape[1], self.sizes[-1])))

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """E[x | code of x], float (b, c, h, w) on the raw scale."""
        return self.decode(self.encode(x))

    def _vectors(self, x: Tensor) -> Float[Tensor, "b d h w"]:
        z: Tensor = self.encoder(self.scaling(x).to(self.quantiser.book.dtype))
        return z

    def _observed(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b p c H W"]:
        parameters: Tensor = self.decoder(z)
        return parameters.unflatten(1, (self.observation.parameters_per_dim, -1))

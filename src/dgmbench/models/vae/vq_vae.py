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

from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import require
from dgmbench.models.autoregressive.raster import require_kernel
from dgmbench.models.vae.code_prior import CodePrior
from dgmbench.models.vae.quantised import GrowingNet, Level, Maps, QuantisedVae, ShrinkingNet, halved
from dgmbench.nn.observation import ObservationName, build_observation
from dgmbench.nn.quantiser import Quantiser


class VqVae(QuantisedVae):
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
        super().__init__(spec, commitment=commitment, prior_share=prior_share)
        require(least=2, codes=codes, prior_features=prior_features)
        require(least=1, code_dim=code_dim, channels=channels, halvings=halvings, components=components)
        require(least=0, blocks=blocks, prior_blocks=prior_blocks)
        require_kernel("prior_kernel", prior_kernel)
        sizes = halved((spec.shape[1], spec.shape[2]), halvings)
        self.sizes = {"code": sizes[-1]}
        self.observation = build_observation(observation, spec, sigma=sigma, components=components)
        parameters = self.observation.parameters_per_dim * spec.shape[0]
        self.encoder = nn.Sequential(
            ShrinkingNet(spec.shape[0], channels, halvings=halvings, blocks=blocks), nn.Conv2d(channels, code_dim, 1)
        )
        self.quantisers["code"] = Quantiser(codes, code_dim, decay=decay, restart=restart)
        self.decoder = GrowingNet(code_dim, parameters, channels, sizes=sizes, blocks=blocks)
        self.prior = CodePrior(codes, features=prior_features, blocks=prior_blocks, kernel=prior_kernel)

    def levels(self, x: Float[Tensor, "b c h w"]) -> dict[str, Level]:
        """The vectors and codes of scaled x."""
        z = self.encoder(x)
        return {"code": Level(z, self.quantiser("code")(z))}

    def observed(self, codes: Maps) -> Float[Tensor, "b pc h w"]:
        """The parameters of p(x | codes)."""
        parameters: Tensor = self.decoder(codes["code"])
        return parameters

    def log_prior(self, names: Maps) -> Float[Tensor, " b"]:
        """Log p(names) of the PixelCNN."""
        return self.prior.log_prob(names["code"])

    def sample_names(self, n: int, generator: Generator | None) -> Maps:
        """Names place by place."""
        return {"code": self.prior.sample(n, self.sizes["code"], generator=generator)}

r"""VQ-VAE-2: a small map of codes for the whole, a larger one for what it leaves open, and priors that attend.

The bottom encoder halves the picture, the top encoder halves its features once more. The top map is quantised first;
its codes, grown again, join the bottom features, which are then quantised too, and the decoder sees both:

    top = Q_t(E_t(h)),    bottom = Q_b(E_b(h, D_t(e_top))),    h = E(x),    p(x | e_top, e_bottom) by the decoder,
    loss of stage 1 = E[-log p(x | e) + commitment sum over levels |z - sg(e)|^2],
    loss of stage 2 = -E[log p(i_top) + log p(i_bottom | i_top)],
    elbo(x) = log p(x | e(x)) + log p(i_top(x)) + log p(i_bottom(x) | i_top(x)) <= log p(x).

Both priors are PixelCNNs of names; the top one attends to all earlier places after each block, the bottom one is given
a map of the top names, of all of them at every place.

Shapes and units: x is raw (b, c, h, w); sides of the bottom map are halved ``halvings`` times, those of the top map
once more. Likelihoods are in nats per example of raw x.

Paper: Razavi, van den Oord, Vinyals, "Generating Diverse High-Fidelity Images with VQ-VAE-2", NeurIPS 2019,
https://arxiv.org/abs/1906.00446.

Different from the paper: what differs in ``vq_vae``; no rejection by a classifier, no labels; the bottom prior has no
attention, as in the paper for its largest maps.
"""

from typing import cast

from jaxtyping import Float
from torch import Generator, Tensor, cat, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import require
from dgmbench.models.autoregressive.raster import require_kernel
from dgmbench.models.vae.code_prior import CodePrior
from dgmbench.models.vae.quantised import GrowingNet, Level, Maps, QuantisedVae, Residual, ShrinkingNet, halved
from dgmbench.nn.observation import ObservationName, build_observation
from dgmbench.nn.quantiser import Quantiser


class VqVae2(QuantisedVae):
    """VQ-VAE-2 of images, with its priors (Razavi, van den Oord, Vinyals 2019).

    Args:
        spec: The data space, images.
        codes: Codes in each book.
        code_dim: Dimensions of a code.
        channels: Width of the networks.
        halvings: How often the sides are halved down to the bottom map.
        blocks: Residual blocks of each network.
        commitment: Weight of what holds the encoder's vectors near their codes.
        decay: Of the moving averages that the codes follow; null: they follow a gradient.
        restart: Vectors a batch below which a code starts anew; 0 never.
        observation: p(x | codes); ``auto`` goes by the kind of the data.
        sigma: Fixed standard deviation of a gaussian observation; learned if None.
        components: Logistics in the mixture of a discrete dimension.
        prior_features: Width of the priors.
        prior_blocks: Residual blocks of each prior.
        prior_kernel: Odd width of their first convolution.
        heads: Heads of the top prior's attention.
        prior_share: The priors' part of the training, between 0 and 1.
    """

    def __init__(
        self, spec: DataSpec, *, codes: int = 512, code_dim: int = 64, channels: int = 128, halvings: int = 2,
        blocks: int = 2, commitment: float = 0.25, decay: float | None = 0.99, restart: float = 1.0,
        observation: ObservationName = "auto", sigma: float | None = None, components: int = 5,
        prior_features: int = 64, prior_blocks: int = 4, prior_kernel: int = 5, heads: int = 4,
        prior_share: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(spec, commitment=commitment, prior_share=prior_share)
        require(least=2, codes=codes, prior_features=prior_features)
        require(least=1, code_dim=code_dim, channels=channels, halvings=halvings, components=components, heads=heads)
        require(least=0, blocks=blocks, prior_blocks=prior_blocks)
        require_kernel("prior_kernel", prior_kernel)
        sizes = halved((spec.shape[1], spec.shape[2]), halvings + 1)
        self.sizes = {"top": sizes[-1], "bottom": sizes[-2]}
        self.observation = build_observation(observation, spec, sigma=sigma, components=components)
        parameters = self.observation.parameters_per_dim * spec.shape[0]
        self.encoder = nn.ModuleDict({
            "bottom": ShrinkingNet(spec.shape[0], channels, halvings=halvings, blocks=blocks),
            "top": ShrinkingNet(channels, channels, halvings=1, blocks=blocks),
            "to_top": nn.Conv2d(channels, code_dim, 1),
            "back": GrowingNet(code_dim, channels, channels, sizes=sizes[-2:], blocks=blocks),
            "to_bottom": nn.Conv2d(2 * channels, code_dim, 1),
        })  # fmt: skip
        for name in ("top", "bottom"):
            self.quantisers[name] = Quantiser(codes, code_dim, decay=decay, restart=restart)
        self.decoder = nn.ModuleDict({
            "grow": GrowingNet(code_dim, code_dim, channels, sizes=sizes[-2:], blocks=0),
            "rest": GrowingNet(2 * code_dim, parameters, channels, sizes=sizes[:-1], blocks=blocks),
        })  # fmt: skip
        how = {"features": prior_features, "blocks": prior_blocks, "kernel": prior_kernel}
        self.prior = nn.ModuleDict({
            "top": CodePrior(codes, heads=heads, **how),
            "names": nn.Embedding(codes, prior_features),
            "given": nn.Sequential(
                *(Residual(prior_features, prior_features) for _ in range(2)),
                GrowingNet(prior_features, prior_features, prior_features, sizes=sizes[-2:], blocks=0),
            ),
            "bottom": CodePrior(codes, condition=prior_features, **how),
        })  # fmt: skip

    def levels(self, x: Float[Tensor, "b c h w"]) -> dict[str, Level]:
        """The vectors and codes of both levels for scaled x, the top one's first."""
        h = self.encoder["bottom"](x)
        z_top = self.encoder["to_top"](self.encoder["top"](h))
        top = self.quantiser("top")(z_top)
        z_bottom = self.encoder["to_bottom"](cat([h, self.encoder["back"](top.straight)], 1))
        return {"top": Level(z_top, top), "bottom": Level(z_bottom, self.quantiser("bottom")(z_bottom))}

    def observed(self, codes: Maps) -> Float[Tensor, "b pc h w"]:
        """The parameters of p(x | both levels' codes)."""
        both = cat([codes["bottom"], self.decoder["grow"](codes["top"])], 1)
        parameters: Tensor = self.decoder["rest"](both)
        return parameters

    def log_prior(self, names: Maps) -> Float[Tensor, " b"]:
        """Log p(top) + log p(bottom | top)."""
        top, bottom = self._priors()
        return top.log_prob(names["top"]) + bottom.log_prob(names["bottom"], self.given(names["top"]))

    def sample_names(self, n: int, generator: Generator | None) -> Maps:
        """The top map, then the bottom one given it."""
        top, bottom = self._priors()
        upper = top.sample(n, self.sizes["top"], generator=generator)
        lower = bottom.sample(n, self.sizes["bottom"], self.given(upper), generator=generator)
        return {"top": upper, "bottom": lower}

    def given(self, top: Tensor) -> Float[Tensor, "b f h w"]:
        """What the top names (b, h', w') tell the bottom prior of each place."""
        out: Tensor = self.prior["given"](self.prior["names"](top).movedim(-1, 1))
        return out

    def _priors(self) -> tuple[CodePrior, CodePrior]:
        return cast(CodePrior, self.prior["top"]), cast(CodePrior, self.prior["bottom"])

"""SinGAN: everything is learned from one picture, by a generator and a critic of its patches at every scale.

A pyramid of the picture x_0, ..., x_N, the smallest first, has a game at each scale. The generator adds details to what
the scale below has made, enlarged by u, and to noise; the critic looks at patches of 2 ``layers`` + 1 pixels alone. So
every sample is made of the picture's patches, and, as all networks are convolutions, may have any size:

    y_0 = G_0(z_0),    y_k = u(y_(k-1)) + g_k(u(y_(k-1)) + sigma_k z_k),    z_k ~ N(0, I)
    critic_k minimises     E a_k(y_k) - a_k(x_k) + penalty_weight E (sqrt(P_k) ||grad a_k(x_hat)|| - 1)^2
    generator_k minimises  -E a_k(y_k) + reconstruction_weight ||r_k - x_k||^2

with a_k the mean of the critic's map over all patches, and P_k the pixels of x_k: pictures are as far apart as the root
of their mean squared difference, whatever their size. r_k is what becomes of one fixed map z* at the smallest scale and
no noise above: r_0 = G_0(z*), r_k = u(r_(k-1)) + g_k(u(r_(k-1))). Scales are trained one after another, smallest first,
and do not change later. A scale's noise is as large as what it has to add: sigma_k = ``noise`` RMSE(u(r_(k-1)), x_k),
measured as its training begins; sigma_0 = 1.

Shapes and units: raw images x (b, c, h, w), scaled to [-1, 1] (``real`` data pass unchanged); x_k has sides (h, w)
times q^(N-k), q near ``ratio`` such that the shorter side of x_0 is ``smallest``; ||.||^2 is a mean over values; losses
are means over the batch, which is as many draws of noise beside the one picture. Before all scales are trained, samples
have larger pixels.

Paper: Shaham, Dekel, Michaeli 2019, https://arxiv.org/abs/1905.01164.

What differs: no batch-norm, whose statistics belong to pictures of one size; one step of each player in turn, in place
of three; the slope is penalised in the root mean square over a picture's pixels, in place of at each of them; bicubic
resizing throughout.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Facts, Logs, Model, Stage
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss, gradient_penalty
from dgmbench.nn.patches import PatchCritic, PatchGenerator, pyramid_sizes
from dgmbench.nn.scaling import Scaling
from dgmbench.nn.super_resolution import resized

Size = tuple[int, int]


class SinGan(Model):
    """A pyramid of patch GANs on a single picture (Shaham et al. 2019).

    Args:
        spec: images.
        smallest: shorter side of the smallest scale, at least that of a critic's patch.
        ratio: about how many times as large each scale is as the one above.
        layers: 3 x 3 convolutions of each network.
        channels: maps of these at the smallest scale.
        widen: twice as many maps after so many scales.
        pace: how many times the share of the scale before it each scale has of the budget.
        noise: sigma_k over the error of the enlarged reconstruction.
        reconstruction_weight: weight of the reconstruction from the fixed map, alpha.
        penalty_weight: weight of the gradient penalty, lambda.
        loss: an object of ``nn.adversarial_losses`` or its name, the same at all scales.
        index: which training picture to learn from, where the data have several.
    """

    level: Tensor
    picture: Tensor
    fixed: Tensor
    sigma: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        smallest: int = 25,
        ratio: float = 0.75,
        layers: int = 5,
        channels: int = 32,
        widen: int = 4,
        pace: float = 1.0,
        noise: float = 0.1,
        reconstruction_weight: float = 10.0,
        penalty_weight: float = 0.1,
        loss: AdversarialLossName | AdversarialLoss = "wasserstein",
        index: int | None = None,
    ) -> None:
        super().__init__(spec)
        require(least=1, layers=layers, channels=channels, widen=widen)
        require(above=0, below=1, ratio=ratio)
        require(above=0, pace=pace)
        require(least=0, noise=noise, reconstruction_weight=reconstruction_weight, penalty_weight=penalty_weight)
        require(least=0, index=index)
        if not spec.is_image:
            raise UserError(f"singan takes images (c, h, w), not {spec}; choose data of images.")
        self.patch, (images, *whole) = 2 * layers + 1, spec.shape
        if not self.patch <= smallest <= min(whole):
            raise UserError(
                f"model.smallest={smallest} must be from {self.patch} pixels, what {layers} layers see, to "
                f"{min(whole)}, the shorter side of the data; change it, model.layers or data.size."
            )
        self.adversarial = adversarial_loss(loss)
        if self.adversarial.sees_real:
            raise UserError(f"The generators judge samples alone; model.loss={self.adversarial} looks at data too.")
        self.noise, self.pace, self.index = noise, pace, index
        self.reconstruction_weight, self.penalty_weight = reconstruction_weight, penalty_weight
        self.scaling = Scaling(spec)
        self.sizes = pyramid_sizes(whole, smallest=smallest, ratio=ratio)
        maps = [channels * 2 ** (k // widen) for k in range(len(self.sizes))]
        bounded, bias = self.scaling.bounded, self.adversarial.sees_constant
        self.generators = nn.ModuleList(PatchGenerator(images, m, layers=layers, bounded=bounded) for m in maps)
        self.critics = nn.ModuleList(PatchCritic(images, m, layers=layers, bias=bias) for m in maps)
        self.register_buffer("level", torch.tensor(len(self.sizes) - 1))  # all scales, until a training begins
        self.register_buffer("picture", torch.zeros(1, images, *whole))
        self.register_buffer("fixed", torch.zeros(1, images, *self.sizes[0]))
        self.register_buffer("sigma", torch.tensor([1.0] + [noise] * (len(self.sizes) - 1)))

    def players(self) -> dict[str, list[nn.Parameter]]:
        """Two for every scale, from the smallest on: ``critic_0``, ``generator_0``, ``critic_1``, ..."""
        networks = {"critic": self.critics, "generator": self.generators}
        return {
            f"{role}_{k}": list(nets[k].parameters()) for k in range(len(self.sizes)) for role, nets in networks.items()
        }

    def stages(self) -> tuple[Stage, ...]:
        """One for each scale."""
        players = [(f"critic_{k}", f"generator_{k}") for k in range(len(self.sizes))]
        return tuple(Stage(f"scale_{k}", each, self.pace**k) for k, each in enumerate(players))

    def prepare(self, facts: Facts) -> None:
        """Refuse a training set of several pictures of which none was chosen."""
        if self.index is None and facts.examples > 1:
            raise UserError(
                f"singan learns from one picture, and these data have {facts.examples} to train on; choose one with "
                "model.index=0 (1, 2, ...), or data=images data.path=FILE."
            )
        if self.index is not None and self.index >= facts.examples:
            raise UserError(f"model.index={self.index} must be less than {facts.examples}, the training pictures.")

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Take the picture, and draw z*."""
        index = self.index or 0
        self.picture.copy_(self.scaling(batch.x[index : index + 1]))
        self.fixed.normal_(generator=generator)

    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Go on to the next scale: start from the networks of the one below, and measure sigma."""
        k = int(stage.name.removeprefix("scale_"))
        if k:
            for nets in (self.generators, self.critics):
                own, before = nets[k].state_dict(), nets[k - 1].state_dict()
                if all(own[name].shape == before[name].shape for name in own):
                    nets[k].load_state_dict(before)
            below = resized(self.fixed_pass(k - 1), self.sizes[k])
            self.sigma[k] = self.noise * (below - self.real(k)).square().mean().sqrt()
        self.level.fill_(k)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, with a draw of noise for each example of the batch."""
        role, scale = player.split("_")
        k, n = int(scale), len(batch.x)
        with torch.no_grad():
            noise = self.noises(n, self.sizes[: k + 1], generator)
            below = self.made(noise[:k])
        if role == "generator":
            game = self.adversarial.generator(self.judged(self.step(noise[k], below), k))
            error = (self.fixed_pass(k) - self.real(k)).square().mean()
            loss = game + self.reconstruction_weight * error
            return loss, {"loss": loss.detach(), "reconstruction": error.detach()}
        with torch.no_grad():
            samples = self.step(noise[k], below)
        data = self.real(k).expand_as(samples)
        real, fake = self.judged(data, k), self.judged(samples, k)
        loss = self.adversarial.discriminator(real, fake)
        root = math.sqrt(data[0, 0].numel())
        slopes = gradient_penalty(lambda x: root * self.judged(x, k), data, samples, generator=generator).mean()
        logs = {"loss": loss, "real": real.mean(), "fake": fake.mean(), "penalty": slopes}
        return loss + self.penalty_weight * slopes, {name: value.detach() for name, value in logs.items()}

    def real(self, k: int) -> Float[Tensor, "1 c i j"]:
        """x_k, the scaled picture at a scale."""
        return resized(self.picture, self.sizes[k]) if k < len(self.sizes) - 1 else self.picture

    def judged(self, x: Float[Tensor, "b c i j"], k: int) -> Float[Tensor, " b"]:
        """a_k: a critic's mean over all patches."""
        return self.critics[k](x).flatten(1).mean(1)

    def noises(self, n: int, sizes: Sequence[Size], generator: Generator | None) -> list[Tensor]:
        """sigma_k z_k (n, c, *size) for the first scales, which have these sizes."""
        c, device = self.spec.shape[0], self.picture.device
        return [
            sigma * torch.randn((n, c, *size), device=device, generator=generator)
            for sigma, size in zip(self.sigma, sizes, strict=False)
        ]

    def step(self, noise: Float[Tensor, "n c i j"], below: Sequence[Tensor]) -> Float[Tensor, "n c i j"]:
        """y_k of sigma_k z_k and what is there of the scales below, the last of which counts."""
        k = len(below)
        return self.generators[k](noise, resized(below[-1], noise.shape[2:]) if k else torch.zeros_like(noise))

    def made(self, noise: Sequence[Tensor], below: Sequence[Tensor] = ()) -> list[Tensor]:
        """Scaled images of all scales that there is noise for, (n, c, *size) each; those ``below`` are given."""
        images = list(below)
        for z in noise[len(images) :]:
            images.append(self.step(z, images))
        return images

    def fixed_pass(self, k: int) -> Float[Tensor, "1 c i j"]:
        """r_k, what becomes of z* and no noise above; only generator k has a gradient."""
        noise = [self.fixed, *(self.picture.new_zeros(1, self.spec.shape[0], *size) for size in self.sizes[1 : k + 1])]
        with torch.no_grad():
            below = self.made(noise[:k])
        return self.step(noise[k], below)

    def whole(self, x: Float[Tensor, "b c i j"], size: Sequence[int] | None = None) -> Float[Tensor, "b c h w"]:
        """Images of a scale at the picture's size, or another, by larger pixels, and within the data's bounds."""
        x = F.interpolate(x, tuple(self.spec.shape[1:] if size is None else size))
        return x.clamp(-1, 1) if self.scaling.bounded else x

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw images of the picture's size, rounded to the levels."""
        if y is not None:
            raise UserError("labels were given, but singan has no classes; leave them out.")
        return self.sample_sized(n, (self.spec.shape[1], self.spec.shape[2]), generator=generator)

    @torch.no_grad()
    def sample_sized(self, n: int, size: Size, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw images (n, c, *size); ``UserError`` where the smallest scale would be smaller than a patch."""
        _, *whole = self.spec.shape
        sizes = [(round(size[0] * h / whole[0]), round(size[1] * w / whole[1])) for h, w in self.sizes]
        if min(sizes[0]) < self.patch:
            least = [-(-self.patch * side // small) for side, small in zip(whole, self.sizes[0], strict=True)]
            raise UserError(
                f"size=[{size[0]},{size[1]}] is too small: this model draws pictures from about {least} on, whose "
                f"smallest scale has the {self.patch} pixels that its networks see at a time."
            )
        images = self.made(self.noises(n, sizes[: int(self.level) + 1], generator))
        return self.scaling.inverse(self.whole(images[-1], size))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """r_N, float (b, *shape) on the raw scale, for every x: z* is the code of the one picture."""
        return self.scaling.unrounded(self.whole(self.fixed_pass(int(self.level)))).expand(len(x), -1, -1, -1)

    @torch.no_grad()
    def growth(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """n samples at every scale on their way, raw (n, scales, *shape), the smaller ones with larger pixels."""
        images = self.made(self.noises(n, self.sizes[: int(self.level) + 1], generator))
        return torch.stack([self.scaling.inverse(self.whole(x)) for x in images], 1)

    @torch.no_grad()
    def panels(self, batch: Batch, *, generator: Generator | None = None) -> Tensor:
        """The picture, its reconstruction, and samples that start from the picture itself at scale N - 1, N - 2, ...,
        0 and then from noise alone: raw (b, 2 + scales, *shape).
        """
        n, level = len(batch.x), int(self.level)
        columns = [self.picture, self.fixed_pass(level)]
        known = [self.real(k).expand(n, -1, -1, -1) for k in range(level)]
        for k in range(level, -1, -1):
            columns.append(self.made(self.noises(n, self.sizes[: level + 1], generator), known[:k])[-1])
        return torch.stack([self.scaling.inverse(self.whole(x)).expand(n, -1, -1, -1) for x in columns], 1)

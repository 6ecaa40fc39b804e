"""Small right models, one of each kind, whose mathematics can be read off; the tests of ``verify`` break them."""

import math

import torch
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.bijections import Bijection, Mapped
from dgmbench.nn.labels import count_classes, draw_classes, marginal, start_class_prior

BINARY = DataSpec((1, 2, 2), "binary")
PLANE = DataSpec((2,), "real")
THREE = DataSpec((3,), "binary")
LABELLED = DataSpec((1, 2, 2), "binary", num_classes=3)


class Bernoullis(Model):
    """Independent bits."""

    def __init__(self, spec: DataSpec = BINARY) -> None:
        super().__init__(spec)
        self.logits = nn.Parameter(torch.randn(spec.dim))

    def log_prob(self, x: Tensor) -> Tensor:
        x = x.float().flatten(1)
        return (x * self.logits - nn.functional.softplus(self.logits)).sum(1)

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        p = self.logits.sigmoid().expand(n, -1)
        return torch.bernoulli(p, generator=generator).to(self.spec.dtype).reshape(n, *self.spec.shape)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return -self.log_prob(batch.x).mean(), {}


class Autoregressive(Model):
    """Logistic regression of each bit on the bits before it, in an order of its own."""

    def __init__(self, spec: DataSpec = BINARY) -> None:
        super().__init__(spec)
        self.weight = nn.Parameter(torch.randn(spec.dim, spec.dim))
        self.bias = nn.Parameter(torch.randn(spec.dim))
        self.register_buffer("order", torch.randperm(spec.dim))

    def mask(self) -> Tensor:
        return (self.order[:, None] > self.order).to(self.weight.dtype)

    def ordering(self) -> Tensor:
        return self.order

    def conditional_logits(self, x: Tensor) -> Tensor:
        return (x.float().flatten(1) @ (self.weight * self.mask()).T + self.bias)[:, :, None]

    def log_prob(self, x: Tensor) -> Tensor:
        logits = self.conditional_logits(x)[:, :, 0]
        return (x.float().flatten(1) * logits - nn.functional.softplus(logits)).sum(1)

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        x = torch.zeros(n, self.spec.dim)
        for i in self.order.argsort():
            x[:, i] = torch.bernoulli(self.conditional_logits(x)[:, i, 0].sigmoid(), generator=generator)
        return x.to(self.spec.dtype).reshape(n, *self.spec.shape)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return -self.log_prob(batch.x).mean(), {}


class Completing(Autoregressive):
    """Draws what is unknown in the order; exact where all that is known comes first."""

    def complete(self, x: Tensor, known: Tensor, *, generator: Generator | None = None) -> Tensor:
        x, known = x.flatten(1).float(), known.flatten(1)
        for i in self.order.argsort():
            drawn = torch.bernoulli(self.conditional_logits(x)[:, i, 0].sigmoid(), generator=generator)
            x[:, i] = torch.where(known[:, i], x[:, i], drawn)
        return x.to(self.spec.dtype).reshape(len(x), *self.spec.shape)


class Labelled(Model):
    """Independent bits, with probabilities of their own for every class."""

    class_log_prior: Tensor

    def __init__(self, spec: DataSpec = LABELLED) -> None:
        super().__init__(spec)
        self.logits = nn.Parameter(torch.randn(spec.num_classes or 1, spec.dim))
        start_class_prior(self, spec)

    def initialise(self, batch: Batch, generator: Generator) -> None:
        count_classes(self.class_log_prior, batch.y)

    def given(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(x | y)."""
        logits = self.logits[y]
        return (x.float().flatten(1) * logits - nn.functional.softplus(logits)).sum(1)

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        if y is not None:
            return self.given(x, y)
        return marginal(lambda label: self.given(x, label), self.class_log_prior, len(x))

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        y = draw_classes(self.class_log_prior, n, generator) if y is None else y
        x = torch.bernoulli(self.logits[y].sigmoid(), generator=generator)
        return x.to(self.spec.dtype).reshape(n, *self.spec.shape)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return -self.log_prob(batch.x, batch.y).mean(), {}


class LinearGaussian(Model):
    """x = W z + b + sigma noise with one latent, and a linear Gaussian q(z | x)."""

    def __init__(self, spec: DataSpec = PLANE) -> None:
        super().__init__(spec)
        self.weight = nn.Parameter(torch.randn(spec.dim))
        self.bias = nn.Parameter(torch.zeros(spec.dim))
        self.log_sigma = nn.Parameter(torch.zeros(()))
        self.encoder = nn.Linear(spec.dim, 1)
        self.log_width = nn.Parameter(torch.full((), -0.5))

    def log_prob(self, x: Tensor) -> Tensor:
        covariance = torch.outer(self.weight, self.weight) + (2 * self.log_sigma).exp() * torch.eye(self.spec.dim)
        return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(x.float())

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Tensor:
        x = x.float()
        mean = self.encoder(x)[:, 0]
        noise = torch.randn(k, len(x), generator=generator)
        z = mean + self.log_width.exp() * noise
        log_q = -0.5 * noise**2 - self.log_width - 0.5 * math.log(2 * math.pi)
        log_prior = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
        residual = (x - z[:, :, None] * self.weight - self.bias) / self.log_sigma.exp()
        log_x = (-0.5 * residual**2 - self.log_sigma - 0.5 * math.log(2 * math.pi)).sum(2)
        return log_prior + log_x - log_q

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        return self.log_weights(x, 1, generator=generator)[0]

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x.float())

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        return self.encode(x) * self.weight + self.bias

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        z = torch.randn(n, 1, generator=generator)
        noise = torch.randn(n, self.spec.dim, generator=generator)
        return (z * self.weight + self.bias + self.log_sigma.exp() * noise).to(self.spec.dtype)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return -self.elbo(batch.x, generator=generator).mean(), {}


class Affine(Bijection):
    """z = L (x - b), lower triangular with a positive diagonal."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lower = nn.Parameter(torch.randn(dim, dim))
        self.log_diagonal = nn.Parameter(torch.randn(dim))
        self.bias = nn.Parameter(torch.randn(dim))

    def matrix(self) -> Tensor:
        return self.lower.tril(-1) + self.log_diagonal.exp().diag()

    def forward(self, x: Tensor) -> Mapped:
        return (x - self.bias) @ self.matrix().T, self.log_diagonal.sum().expand(len(x))

    def inverse(self, z: Tensor) -> Mapped:
        x = torch.linalg.solve_triangular(self.matrix(), z.T, upper=False).T + self.bias
        return x, -self.log_diagonal.sum().expand(len(z))


class GaussianFlow(Model):
    """An affine flow, so a Gaussian."""

    def __init__(self, spec: DataSpec = PLANE) -> None:
        super().__init__(spec)
        self.bijection: Bijection = Affine(spec.dim)

    def continuous(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        return x.float()

    def log_prob(self, x: Tensor) -> Tensor:
        z, log_det = self.bijection(self.continuous(x))
        return (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(1) + log_det

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return self.bijection.inverse(torch.randn(n, self.spec.dim, generator=generator))[0].to(self.spec.dtype)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return -self.log_prob(batch.x).mean(), {}


class Mixture(Model):
    """Bits given one hidden bit, with an amortised q: a latent-variable model on an enumerable space."""

    def __init__(self, spec: DataSpec = BINARY) -> None:
        super().__init__(spec)
        self.prior = nn.Parameter(torch.randn(()))
        self.logits = nn.Parameter(torch.randn(2, spec.dim))
        self.encoder = nn.Linear(spec.dim, 1)

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Tensor:
        x = x.float().flatten(1)
        a = self.encoder(x)[:, 0].expand(k, -1)
        z = torch.bernoulli(a.sigmoid(), generator=generator)
        log_q = z * a - nn.functional.softplus(a)
        log_prior = z * self.prior - nn.functional.softplus(self.prior)
        logits = self.logits[z.long()]
        return log_prior + (x * logits - nn.functional.softplus(logits)).sum(2) - log_q

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        return self.log_weights(x, 1, generator=generator)[0]

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        z = torch.bernoulli(self.prior.sigmoid().expand(n), generator=generator).long()
        x = torch.bernoulli(self.logits[z].sigmoid(), generator=generator)
        return x.to(self.spec.dtype).reshape(n, *self.spec.shape)

    noise_dim = 1

    def of_noise(self, noise: Tensor) -> Tensor:
        """The hidden bit, 1 where the noise's quantile lies below its probability."""
        return (torch.special.ndtr(noise[:, 0]) < self.prior.sigmoid()).long()

    def log_prob_given(self, x: Tensor, noise: Tensor) -> Tensor:
        logits = self.logits[self.of_noise(noise)]
        return (x.float().flatten(1) * logits - nn.functional.softplus(logits)).sum(1)

    def sample_given(self, noise: Tensor, *, generator: Generator | None = None) -> Tensor:
        x = torch.bernoulli(self.logits[self.of_noise(noise)].sigmoid(), generator=generator)
        return x.to(self.spec.dtype).reshape(len(noise), *self.spec.shape)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return -self.elbo(batch.x, generator=generator).mean(), {}


class LabelledMixture(Model):
    """One ``Mixture`` for each class, of which bounds are known only."""

    class_log_prior: Tensor

    def __init__(self, spec: DataSpec = LABELLED) -> None:
        super().__init__(spec)
        self.each = nn.ModuleList(Mixture(spec) for _ in range(spec.num_classes or 1))
        start_class_prior(self, spec)

    def initialise(self, batch: Batch, generator: Generator) -> None:
        count_classes(self.class_log_prior, batch.y)

    def log_weights(self, x: Tensor, k: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        all_of_them = torch.stack([one.log_weights(x, k, generator=generator) for one in self.each])
        if y is None:
            return (all_of_them + self.class_log_prior[:, None, None]).logsumexp(0)
        return all_of_them.gather(0, y.expand(1, k, len(x)))[0]

    def elbo(self, x: Tensor, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return self.log_weights(x, 1, y, generator=generator)[0]

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        y = draw_classes(self.class_log_prior, n, generator) if y is None else y
        drawn = torch.stack([one.sample(n, generator=generator) for one in self.each])
        return drawn[y, torch.arange(n)]

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return -self.elbo(batch.x, batch.y, generator=generator).mean(), {}


class BoltzmannPath:
    """From uniform bits to a fully visible Boltzmann machine, by one Gibbs step at a random unit."""

    def __init__(self, coupling: Tensor, bias: Tensor) -> None:
        self.coupling, self.bias = coupling.detach().double(), bias.detach().double()

    def log_base_partition(self) -> Tensor:
        return torch.tensor(len(self.bias) * math.log(2), dtype=torch.float64)

    def sample_base(self, n: int, *, generator: Generator | None = None) -> Tensor:
        return torch.bernoulli(torch.full((n, len(self.bias)), 0.5, dtype=torch.float64), generator=generator)

    def log_unnormalised(self, v: Tensor, beta: float) -> Tensor:
        v = v.double()
        return beta * (((v @ self.coupling) * v).sum(1) / 2 + v @ self.bias)

    def transition(self, v: Tensor, beta: float, *, generator: Generator | None = None) -> Tensor:
        unit = torch.randint(len(self.bias), (len(v), 1), generator=generator)
        field = beta * (v.double() @ self.coupling + self.bias)
        new = torch.bernoulli(field.gather(1, unit).sigmoid(), generator=generator)
        return v.scatter(1, unit, new.to(v.dtype))

    def exact_log_partition(self) -> Tensor | None:
        d = len(self.bias)
        v = (torch.arange(2**d)[:, None] >> torch.arange(d) & 1).double()
        return self.log_unnormalised(v, 1.0).logsumexp(0)


class Boltzmann(Model):
    """Three visible units with couplings, trained with persistent chains."""

    def __init__(self, spec: DataSpec = THREE) -> None:
        super().__init__(spec)
        self.free = nn.Parameter(torch.randn(spec.dim, spec.dim))
        self.bias = nn.Parameter(torch.randn(spec.dim))
        self.register_buffer("chains", torch.bernoulli(torch.full((20, spec.dim), 0.5)))

    def annealing_path(self) -> BoltzmannPath:
        coupling = self.free.tril(-1)
        return BoltzmannPath(coupling + coupling.T, self.bias)

    def log_prob_unnormalised(self, x: Tensor) -> Tensor:
        v = x.float().flatten(1)
        return ((v @ self.free.tril(-1)) * v).sum(1) + v @ self.bias

    def transition(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        v = self.annealing_path().transition(x.flatten(1), 1.0, generator=generator)
        return v.reshape(x.shape)

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        path = self.annealing_path()
        v = path.sample_base(n, generator=generator)
        for _ in range(60):
            v = path.transition(v, 1.0, generator=generator)
        return v.to(self.spec.dtype).reshape(n, *self.spec.shape)

    def complete(self, x: Tensor, known: Tensor, *, generator: Generator | None = None) -> Tensor:
        path = self.annealing_path()
        v = torch.where(known, x, path.sample_base(len(x), generator=generator).to(x.dtype).reshape(x.shape))
        for _ in range(60):
            v = torch.where(known, x, path.transition(v, 1.0, generator=generator))
        return v

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        model = self.log_prob_unnormalised(self.chains).mean()
        return model - self.log_prob_unnormalised(batch.x).mean(), {}

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        self.chains.copy_(self.transition(self.chains, generator=generator))


class Adversaries(Model):
    """Two players: a shift that produces samples, and a linear critic that steps twice as often."""

    def __init__(self, spec: DataSpec = PLANE) -> None:
        super().__init__(spec)
        self.noise_dim = spec.dim
        self.shift = nn.Parameter(torch.randn(spec.dim))
        self.slope = nn.Parameter(torch.randn(spec.dim))

    def players(self) -> dict[str, list[nn.Parameter]]:
        return {"critic": [self.slope], "generator": [self.shift]}

    def turn(self, step: int, stage: object) -> tuple[str, ...]:
        return ("critic", "generator") if step % 2 else ("critic",)

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return self.generate(torch.randn(n, self.spec.dim, generator=generator)).to(self.spec.dtype)

    def generate(self, noise: Tensor) -> Tensor:
        return noise + self.shift

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        real = (batch.x.float() @ self.slope).mean()
        fake = (self.sample(len(batch.x), generator=generator) @ self.slope).mean()
        if player == "generator":
            return -fake, {}
        return fake - real + 0.1 * self.slope.square().sum(), {}

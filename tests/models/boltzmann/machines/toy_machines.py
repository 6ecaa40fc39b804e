"""Machines as a new row would write them: Gaussian and count data over bits, and three layers of bits."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.boltzmann.couplings import Couplings, GeometricPath
from dgmbench.models.boltzmann.energy_model import EnergyModel, TwoSided
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.machine import Machine
from dgmbench.nn.unit_layers import BERNOULLI, Counts, Gaussian, Independent


class GaussianToy(TwoSided):
    """Gaussian visible units with a learned deviation each, over bits."""

    def __init__(self, spec: DataSpec, *, hidden: int = 4, estimator: Estimator | None = None) -> None:
        super().__init__(spec, sample_steps=100)
        self.weight = nn.Parameter(0.3 * torch.randn(spec.dim, hidden))
        self.bias = nn.Parameter(torch.zeros(spec.dim))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.log_sigma = nn.Parameter(torch.zeros(spec.dim))
        self.register_buffer("base_eta", torch.zeros(spec.dim))
        self.register_buffer("base_width", torch.ones(spec.dim))
        self.train_by(estimator)

    def couplings(self, fast: Sequence[Tensor] | None = None) -> Couplings:
        own = [self.weight, self.bias, self.hidden_bias, self.log_sigma]
        weight, a, b, log_sigma = own if fast is None else [x + y for x, y in zip(own, fast, strict=True)]
        return Couplings(weight, a, b, Gaussian.of(log_sigma.exp()), BERNOULLI)

    def base(self) -> Independent:
        sigma = self.log_sigma.exp()
        return Independent(Gaussian(sigma, self.base_width), self.base_eta * sigma)

    def state_sizes(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        v = self.flatten(batch.x)
        self.log_sigma.copy_(v.std(0).log())
        units, eta = Gaussian.of(v.std(0)).fitted(v)
        self.base_width.copy_(units.width)
        self.base_eta.copy_(eta / v.std(0))
        self.bias.copy_(v.mean(0) / v.std(0))
        self.estimator.initialise(self, generator)


class CountToy(TwoSided):
    """A replicated softmax: bits above the counts of words, their biases scaled by the document's length."""

    conditioned = True

    def __init__(self, spec: DataSpec, *, hidden: int = 3, estimator: Estimator | None = None) -> None:
        super().__init__(spec, sample_steps=50)
        self.weight = nn.Parameter(0.3 * torch.randn(spec.dim, hidden))
        self.bias = nn.Parameter(torch.zeros(spec.dim))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.train_by(estimator)

    def at_length(self, total: Tensor) -> Couplings:
        b = total[:, None].to(self.weight.dtype) * self.hidden_bias
        return Couplings(self.weight, self.bias, b, Counts(total), BERNOULLI)

    def couplings_given(self, x: Tensor, fast: Sequence[Tensor] | None = None) -> Couplings:
        return self.at_length(self.condition_of(x))

    def state_sizes(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    def condition_of(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1)

    def annealing_path_given(self, condition: Tensor) -> GeometricPath:
        return GeometricPath(self.at_length(condition.long()), torch.zeros_like(self.bias))

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        path = self.annealing_path_given(torch.full((n,), 6))
        v = path.sample_base(n, generator=generator)
        return self.raw(path.couplings.gibbs(v, self.sample_steps, generator))


class DeepToy(EnergyModel):
    """Three layers of bits, data at the bottom: mean-field positive phase, chains of the even layers (data and top)."""

    def __init__(
        self, spec: DataSpec, *, hidden_sizes: Sequence[int] = (4, 3), estimator: Estimator | None = None
    ) -> None:
        super().__init__(spec)
        sizes = (spec.dim, *hidden_sizes)
        self.biases = nn.ParameterList(torch.zeros(size) for size in sizes)
        self.weights = nn.ParameterList(0.3 * torch.randn(a, b) for a, b in pairwise(sizes))
        self.train_by(estimator)

    def machine(self, fast: Sequence[Tensor] | None = None) -> Machine:
        own = [*self.biases, *self.weights]
        values = own if fast is None else [x + y for x, y in zip(own, fast, strict=True)]
        layers = tuple(Independent(BERNOULLI, bias) for bias in values[: len(self.biases)])
        weights = {(n, n + 1): weight for n, weight in enumerate(values[len(self.biases) :])}
        return Machine(layers, weights)

    def couplings(self, fast: Sequence[Tensor] | None = None) -> Couplings:
        return self.machine(fast).sides(0)

    def base(self) -> Independent:
        return Independent(BERNOULLI, torch.cat([self.biases[0].detach(), torch.zeros_like(self.biases[2])]))

    def state_sizes(self) -> tuple[int, int]:
        v, h1, h2 = (len(bias) for bias in self.biases)
        return v + h2, h1

    def positive(self, now: Any, v: Tensor, generator: Generator | None = None) -> Tensor:
        return self.machine().mean_field({0: v}, steps=20).free_energy

    @torch.no_grad()
    def from_data(self, now: Any, v: Tensor, steps: int, generator: Generator) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            free = self.positive(now, v)
        top = self.machine().mean_field({0: v}, steps=20).means[2]
        state = torch.cat([v, BERNOULLI.sample(top.logit(eps=1e-6), generator)], 1)
        return free, now.gibbs(state, steps, generator)

    def elbo_unnormalised(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        return -self.positive(None, self.flatten(x))

    def annealing_path(self) -> GeometricPath:
        """The state is the middle layer, the odd parity, given the layers around it summed out."""

        def upwards(x: Tensor, generator: Generator | None) -> Tensor:
            mean = self.machine().mean_field({0: self.flatten(x)}, steps=20).means[1]
            return BERNOULLI.sample(mean.logit(eps=1e-6), generator)

        sides = self.machine().sides(1)
        return GeometricPath(sides, torch.zeros_like(sides.visible_bias), upwards=upwards)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        state = self.couplings().gibbs(self.base().sample(n, generator), 100, generator)
        return state[:, : self.spec.dim].to(self.spec.dtype).view(n, *self.spec.shape)

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        rates = (self.flatten(batch.x).sum(0) + 1) / (len(batch.x) + 2)
        self.biases[0].copy_(rates.logit())
        self.estimator.initialise(self, generator)

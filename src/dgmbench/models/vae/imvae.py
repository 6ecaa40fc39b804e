r"""Infinite mixture of VAEs: a Dirichlet process says how many VAEs there are and which one explains each example.

Every training example i belongs to a component c_i, a small VAE with a classifier of its codes. Assignments are drawn
by Gibbs sampling, batch by batch, and each component learns from its own examples:

    p(c_i = k | others, x_i, y_i) is proportional to n_k exp(elbo_k(x_i)) q_k(y_i | x_i)   of a component of n_k others,
                                                     alpha exp(elbo(x_i)) / m              of each of m empty ones,
    loss = -mean over i of elbo_{c_i}(x_i) - label_weight mean over labelled i of log q_{c_i}(y_i | x_i).

Empty components are draws of the base measure, made anew after every update: networks with fresh random weights, whose
decoder's last bias is a random example, ``certainty`` sure of each pixel. Where one of them explains an example better
than those in use, the mixture grows; a component that loses its last example goes back to them. The factor of the label
counts where it is known. With the counts as weights pi_k (alpha shared by the empty ones),

    p(x) = sum_k pi_k p_k(x),    q(y | x) proportional to sum_k pi_k exp(elbo_k(x)) q_k(y | x).

``log_weights`` are log sum_k pi_k w_k, w_k a weight of component k; ``elbo`` is one of them. ``code_maps`` names the
most probable component.

Shapes and units: x is raw (b, *shape), binary, labels (b,), -1 where unknown, z (b, latent); nats per example.

Paper: Abbasnejad, Dick, van den Hengel, "Infinite Variational Autoencoder for Semi-Supervised Learning", CVPR 2017,
https://arxiv.org/abs/1611.07800.

What differs: empty components are auxiliary ones, as in Neal's algorithm 8 (``nn.dirichlet_process``), with a base
measure taken from the data; there are at most ``components`` at a time; a classifier is a softmax of the code's mean.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Facts, Logs, Model
from dgmbench.models.vae.vae import Vae
from dgmbench.nn.dirichlet_process import assign, slot_weights
from dgmbench.nn.labels import class_count, label_nll, labels_of
from dgmbench.nn.levels import draw_categories


class Component(nn.Module):
    """One VAE and the classifier of its codes."""

    def __init__(self, spec: DataSpec, *, hidden_sizes: Sequence[int], latent: int, classes: int) -> None:
        super().__init__()
        self.vae = Vae(spec, hidden_sizes=hidden_sizes, latent=latent)
        self.classifier = nn.Linear(latent, classes)

    def label_log_prob(self, x: Tensor) -> Float[Tensor, "b c"]:
        """log q_k(y | x) of every label."""
        return self.classifier(self.vae.encode(x)).log_softmax(1)

    @torch.no_grad()
    def draw(self, x: Float[Tensor, " *shape"], certainty: float, generator: Generator) -> None:
        """Take fresh weights, with the decoder's last bias so sure of each pixel of x."""
        maps = [module for module in self.modules() if isinstance(module, nn.Linear)]
        for module in maps:
            bound = 1 / math.sqrt(module.in_features)
            for parameter in (module.weight, module.bias):
                parameter.uniform_(-bound, bound, generator=generator)
        last = [module for module in self.vae.decoder.modules() if isinstance(module, nn.Linear)][-1]
        last.bias.copy_((2 * x.flatten() - 1) * math.log(certainty / (1 - certainty)))


class Imvae(Model):
    """Infinite mixture of variational autoencoders (Abbasnejad, Dick, van den Hengel 2017).

    Args:
        spec: The data space, binary with labels.
        concentration: alpha: how readily components begin.
        start: Components that examples are dealt out to at first.
        components: The most that there can be.
        hidden_sizes: Widths of each component's hidden layers, encoder order; the decoder mirrors them.
        latent: Dimensions of each component's z.
        certainty: Of the base measure's decoders, the probability of each pixel of their example.
        label_weight: Of the classifiers' loss.
    """

    slots: Tensor
    counts: Tensor

    def __init__(
        self, spec: DataSpec, *, concentration: float = 0.1, start: int = 1, components: int = 20,
        hidden_sizes: Sequence[int] = (100,), latent: int = 8, certainty: float = 0.7, label_weight: float = 10.0,
    ) -> None:  # fmt: skip
        super().__init__(spec)
        if spec.kind != "binary":
            raise UserError(f"imvae takes binary data, not {spec}; binarise it with data.binarise=threshold, say.")
        require(above=0, concentration=concentration)
        require(least=1, start=start, components=components, latent=latent, hidden_sizes=hidden_sizes)
        require(above=0.5, below=1, certainty=certainty)
        require(least=0, label_weight=label_weight)
        if start > components:
            raise UserError(f"model.start={start} is more than model.components={components}; raise the latter.")
        self.concentration, self.start, self.certainty = concentration, start, certainty
        self.label_weight, self.noise_dim = label_weight, latent
        self.code_books: Mapping[str, int] = {"component": components}
        classes = class_count(spec)  # refuses data without labels
        self.components = nn.ModuleList(
            Component(spec, hidden_sizes=tuple(hidden_sizes), latent=latent, classes=classes) for _ in range(components)
        )
        self.register_buffer("slots", torch.zeros(0, dtype=torch.int64))  # of every training example
        self.register_buffer("counts", torch.zeros(components, dtype=torch.int64))

    # ---- training ----

    def prepare(self, facts: Facts) -> None:
        """Make place for every training example's assignment."""
        if len(self.slots) != facts.examples:
            self.slots = torch.zeros(facts.examples, dtype=torch.int64, device=self.counts.device)

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Deal the examples out to the first components at random; the others are draws of the base measure."""
        self.slots.random_(self.start, generator=generator)
        self.counts.copy_(torch.bincount(self.slots, minlength=len(self.counts)))
        self._draw_empty(batch.x, generator)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The negative bound of each example by its own component, and the classifiers' loss."""
        own, y = self.slots[self._rows(batch)], labels_of(batch)
        bounds = batch.x.new_empty(len(own), dtype=self._dtype)
        scores = batch.x.new_empty(len(own), self.spec.num_classes or 0, dtype=self._dtype)
        for k in own.unique().tolist():
            members, component = own == k, self._component(k)
            bounds[members] = component.vae.elbo(batch.x[members], generator=generator)
            scores[members] = component.label_log_prob(batch.x[members])
        bound, labels = bounds.mean(), label_nll(scores, y)
        logs = {"bound": bound.detach(), "labels": labels.detach(), "components": (self.counts > 0).sum().double()}
        return self.label_weight * labels - bound, logs

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Draw the batch's assignments anew, and the components that are empty after that."""
        log_p = self._bounds(batch.x, generator)
        y = labels_of(batch)
        known = y >= 0
        log_p[known] += self._label_log_probs(batch.x[known])[torch.arange(int(known.sum())), :, y[known]]
        slots, counts = assign(self.slots, self.counts, self._rows(batch), log_p, self.concentration, generator)
        self.slots.copy_(slots)
        self.counts.copy_(counts)
        self._draw_empty(batch.x, generator)

    # ---- use ----

    @property
    def log_mixture(self) -> Float[Tensor, " t"]:
        """log pi of every component."""
        return slot_weights(self.counts, self.concentration).log().log_softmax(0).to(self._dtype)

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Float[Tensor, "k b"]:
        """Draw k importance weights of each raw x (b, *shape), one code of every component in each."""
        each = [self._component(j).vae.log_weights(x, k, generator=generator) for j in range(len(self.components))]
        return (torch.stack(each) + self.log_mixture[:, None, None]).logsumexp(0)

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """One draw of a bound of raw x (b, *shape)."""
        return self.log_weights(x, 1, generator=generator)[0]

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples, raw (n, *shape), each of a component drawn by its weight."""
        like = self._component(0).classifier.weight
        noise = torch.randn(n, self.noise_dim, generator=generator, device=like.device, dtype=like.dtype)
        return self.sample_given(noise, generator=generator)

    def log_prob_given(self, x: Tensor, noise: Float[Tensor, "b z"]) -> Float[Tensor, " b"]:
        """log p(x | z) of raw x (b, *shape) at z = noise, a mixture of the components."""
        each = [self._component(k).vae.log_prob_given(x, noise) for k in range(len(self.components))]
        return (torch.stack(each, 1) + self.log_mixture).logsumexp(1)

    @torch.no_grad()
    def sample_given(self, noise: Float[Tensor, "b z"], *, generator: Generator | None = None) -> Tensor:
        """Draw x, raw (b, *shape), from p(x | z) at z = noise."""
        uniform = torch.rand(len(noise), generator=generator, device=noise.device, dtype=noise.dtype)
        drawn = draw_categories(self.log_mixture.expand(len(noise), -1), uniform)
        x = torch.empty(len(noise), *self.spec.shape, dtype=self.spec.dtype, device=noise.device)
        for k in drawn.unique().tolist():
            x[drawn == k] = self._component(k).vae.sample_given(noise[drawn == k], generator=generator)
        return x

    def classify(self, x: Tensor) -> Float[Tensor, "b c"]:
        """log q(y | x) of raw x (b, *shape), the components' classifiers weighted by how well they explain x."""
        return (self.component_log_prob(x)[..., None] + self._label_log_probs(x)).logsumexp(1)

    def component_log_prob(self, x: Tensor) -> Float[Tensor, "b t"]:
        """log p(c | x) of raw x (b, *shape), from the bounds at the means of the codes."""
        return (self._bounds(x, None) + self.log_mixture).log_softmax(1)

    def code_maps(self, x: Tensor) -> Mapping[str, Int[Tensor, "b one"]]:
        """The most probable component of raw x (b, *shape)."""
        return {"component": self.component_log_prob(x).argmax(1, keepdim=True)}

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """E[x | z] at a draw of the most probable component's code, float (b, *shape) on the raw scale."""
        own = self.component_log_prob(x).argmax(1)
        each = [self._component(k).vae.reconstruct(x, generator=generator) for k in range(len(self.components))]
        return torch.stack(each, 1)[torch.arange(len(x), device=x.device), own]

    def _bounds(self, x: Tensor, generator: Generator | None) -> Float[Tensor, "b t"]:
        """The bound of raw x by every component: at a draw of its code, or at the mean without a generator."""
        columns = []
        for k in range(len(self.components)):
            vae = self._component(k).vae
            if generator is not None:
                columns.append(vae.elbo(x, generator=generator))
            else:
                mean, log_sigma = vae.posterior(x)
                kl = 0.5 * (mean.square() + (2 * log_sigma).exp() - 1) - log_sigma
                columns.append(vae.log_prob_given(x, mean) - kl.sum(1))
        return torch.stack(columns, 1)

    def _label_log_probs(self, x: Tensor) -> Float[Tensor, "b t c"]:
        return torch.stack([self._component(k).label_log_prob(x) for k in range(len(self.components))], 1)

    def _draw_empty(self, x: Tensor, generator: Generator) -> None:
        """Every empty component from the base measure, each at a random one of raw x."""
        for k in (self.counts == 0).nonzero()[:, 0].tolist():
            chosen = int(torch.randint(len(x), (), generator=generator, device=x.device))
            self._component(k).draw(x[chosen].to(self._dtype), self.certainty, generator)

    def _rows(self, batch: Batch) -> Int[Tensor, " b"]:
        if batch.index is None or not len(self.slots):
            raise UserError("imvae assigns every training example by its position: prepare() it, and name batch.index.")
        return batch.index

    def _component(self, k: int) -> Component:
        found = self.components[k]
        assert isinstance(found, Component)
        return found

    @property
    def _dtype(self) -> torch.dtype:
        return self._component(0).classifier.weight.dtype

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """As usual, for any number of training examples."""
        stored = state_dict.get(f"{prefix}slots")
        if stored is not None:
            self.slots = self.slots.new_zeros(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

"""Generative stochastic network: a Markov chain that is learnt by denoising, and whose stationary law is the model.

To learn P(x | corrupted x) is supervised and far easier than to learn P(x), yet the chain that corrupts and then draws
from the exact conditional has the data's distribution as its stationary one. A deep network keeps noisy hidden states
from step to step, wired as in a deep Boltzmann machine with tied weights W_l. One step of the chain from (x, h) is

    x~    ~ C(x~ | x): each dimension replaced, with probability ``corruption``, by a uniformly drawn level,
    h_l   = tanh(W_{l-1}' h_{l-1} + W_l h_{l+1} + b_l + noise) + noise, with h_0 = x~, odd layers, then even ones,
    x'    ~ P(x' | h_1), independent dimensions with logits W_0 h_1 + b_0.

*Walk-back training.* The chain starts at an example with h = 0 and takes k steps on its own samples; every step is
trained to give back the clean example, so that wherever the chain strays, it is taught to return:

    loss = -1/k sum_t E[log P(x_0 | h_1 of step t)],      x_0 the example, x_t drawn from step t.

Gradients run through the hidden states of all steps (the noise is added, so they pass), not through the drawn x_t.

With one layer and ``hidden_noise=0`` h_1 depends on x~ alone: a generalised denoising autoencoder. Then x is a Markov
chain by itself, and by corrupting and *drawing* from the exact conditional it keeps P(x); taking the mean in place of a
draw would not. With more layers (x, h) is the chain. It has no tractable likelihood: samples are x after
``sample_steps`` steps from independent dimensions of the data's frequencies, approximate as any chain's are.

Shapes and units: raw x (b, *shape); h_l (b, hidden_sizes[l-1]); P as log-probabilities (b, D, K) over K levels; losses
in nats per example and step.

Papers: Bengio, Thibodeau-Laufer, Alain, Yosinski, "Deep Generative Stochastic Networks Trainable by Backprop", ICML
2014, https://arxiv.org/abs/1306.1091; Alain et al., "GSNs: generative stochastic networks", Information and Inference
2016, https://arxiv.org/abs/1503.05571; Bengio, Yao, Alain, Vincent 2013 (denoising), https://arxiv.org/abs/1305.6663.

What differs: 500 and 50 hidden units where the paper has 1500 in each layer, a corruption of 0.3 for its 0.4 and hidden
noise of 0.1 for its 2. On small images and in short training, such noise drowned the data, and an upper layer as wide
as the first held the chain to few of the classes. Discrete data may have more than two levels, one-hot with a softmax;
samples are drawn, where the paper's figures show the mean of the last x.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.levels import level_counts


class Gsn(Model):
    """Generative stochastic network (Bengio et al. 2014).

    Args:
        spec: binary or discrete data of any shape.
        hidden_sizes: units of each hidden layer, from the data upwards.
        corruption: probability with which each dimension of x is replaced by a random level (salt and pepper).
        hidden_noise: standard deviation of the noise before and after each hidden unit's tanh.
        walkback: steps of the chain in the loss; at least twice the number of layers, so that the example reaches
            the top and comes back.
        sample_steps: steps of the chain before a sample is taken.
    """

    frequencies: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden_sizes: Sequence[int] = (500, 50),
        corruption: float = 0.3,
        hidden_noise: float = 0.1,
        walkback: int = 6,
        sample_steps: int = 200,
    ) -> None:
        super().__init__(spec)
        if spec.kind not in ("binary", "discrete") or spec.levels is None:
            raise UserError(f"gsn models binary or discrete data, but these are {spec}; take data=digits_binary.")
        if not hidden_sizes or min(hidden_sizes) < 1:
            raise UserError(f"gsn needs at least one hidden layer with units, not {list(hidden_sizes)}.")
        if not 0 < corruption <= 1 or hidden_noise < 0:
            raise UserError(
                f"corruption is a probability above 0, hidden_noise at least 0: {corruption=}, {hidden_noise=}."
            )
        if walkback < 1 or sample_steps < 1:
            raise UserError(f"walkback and sample_steps count steps, at least 1: {walkback=}, {sample_steps=}.")
        self.levels, self.corruption, self.hidden_noise = spec.levels, corruption, hidden_noise
        self.walkback, self.sample_steps = walkback, sample_steps
        self.inputs = 1 if self.levels == 2 else self.levels  # numbers by which one dimension enters the network
        sizes = [spec.dim * self.inputs, *hidden_sizes]
        self.weights = nn.ParameterList(torch.empty(low, high) for low, high in pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(size) for size in sizes)
        for weight in self.weights:
            nn.init.xavier_uniform_(weight)
        self.register_buffer("frequencies", torch.full((spec.dim, self.levels), 1.0 / self.levels))

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Frequencies of the levels in each dimension, with one example of each added, and visible biases to match."""
        counts = level_counts(batch.x.flatten(1), self.levels).to(self.frequencies) + 1
        self.frequencies.copy_(counts / counts.sum(1, keepdim=True))
        logs = self.frequencies.log()
        self.biases[0].copy_(logs[:, 1] - logs[:, 0] if self.inputs == 1 else logs.flatten())

    # ---- the chain ----

    def corrupt(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """One draw of C: raw x (b, *shape) with some dimensions replaced by uniformly drawn levels."""
        u = torch.rand(x.shape, generator=generator, device=x.device)
        other = torch.randint(self.levels, x.shape, generator=generator, device=x.device).to(x.dtype)
        return torch.where(u < self.corruption, other, x)

    def rest(self, n: int) -> list[Float[Tensor, "n _"]]:
        """Hidden states at which a chain starts: zeros."""
        return [bias.new_zeros(n, len(bias)) for bias in self.biases[1:]]

    def denoise(
        self,
        corrupted: Tensor,
        hidden: Sequence[Tensor],
        *,
        above: Float[Tensor, "b top"] | None = None,
        noisy: bool = True,
        generator: Generator | None = None,
    ) -> tuple[Float[Tensor, "b d k"], list[Tensor]]:
        """Update the hidden states from corrupted raw values; return log P(x | h_1) of each level, and the states.

        ``above`` is what the top layer receives from something above it, if there is anything.
        """
        v = corrupted.flatten(1).long()
        v = (v if self.inputs == 1 else F.one_hot(v, self.levels).flatten(1)).to(self.weights[0].dtype)
        states = [v, *hidden]
        noise = self.hidden_noise if noisy else 0.0
        for layer in (*range(1, len(states), 2), *range(2, len(states), 2)):
            a = states[layer - 1] @ self.weights[layer - 1] + self.biases[layer]
            if layer + 1 < len(states):
                a = a + states[layer + 1] @ self.weights[layer].T
            elif above is not None:
                a = a + above
            states[layer] = self._blurred(torch.tanh(self._blurred(a, noise, generator)), noise, generator)
        logits = states[1] @ self.weights[0].T + self.biases[0]
        if self.inputs == 1:
            log_p = torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], -1)
        else:
            log_p = logits.view(len(v), -1, self.levels).log_softmax(-1)
        return log_p, states[1:]

    def draw(self, log_p: Float[Tensor, "b d k"], *, generator: Generator | None = None) -> Tensor:
        """Draw raw values (b, *shape) from independent dimensions."""
        cdf = log_p.exp().cumsum(-1)[..., :-1]
        u = torch.rand(log_p.shape[:-1], generator=generator, device=log_p.device, dtype=log_p.dtype)
        return (u[..., None] >= cdf).sum(-1).to(self.spec.dtype).view(-1, *self.spec.shape)

    @torch.no_grad()
    def chain_step(
        self, x: Tensor, hidden: Sequence[Tensor], *, generator: Generator | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """One step of the chain from raw x (b, *shape) and hidden states: corrupt, update, draw."""
        log_p, states = self.denoise(self.corrupt(x, generator=generator), hidden, generator=generator)
        return self.draw(log_p, generator=generator), states

    # ---- training and use ----

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The clean example's negative log-probability, averaged over the steps of a walk that starts there."""
        target = batch.x.flatten(1).long()[..., None]
        x, hidden, errors = batch.x, self.rest(len(batch.x)), []
        for _ in range(self.walkback):
            log_p, hidden = self.denoise(self.corrupt(x, generator=generator), hidden, generator=generator)
            errors.append(-log_p.gather(2, target).sum((1, 2)).mean())
            x = self.draw(log_p.detach(), generator=generator)
        loss = torch.stack(errors).mean()
        return loss, {"first_step": errors[0].detach(), "last_step": errors[-1].detach()}

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """The state x of n chains after ``sample_steps`` steps, raw (n, *shape)."""
        x = self.draw(self.frequencies.log().expand(n, -1, -1), generator=generator)
        hidden = self.rest(n)
        for _ in range(self.sample_steps):
            x, hidden = self.chain_step(x, hidden, generator=generator)
        return x

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """E[x | h_1] of raw x (b, *shape) with no corruption and no noise, float (b, *shape) on the raw scale."""
        log_p, _ = self.denoise(x, self.rest(len(x)), noisy=False)
        return (log_p.exp() @ torch.arange(self.levels, device=x.device).to(log_p)).view(x.shape)

    @staticmethod
    def _blurred(x: Tensor, noise: float, generator: Generator | None) -> Tensor:
        if not noise:
            return x
        return x + noise * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

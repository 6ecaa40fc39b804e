"""Inverse autoregressive flow as a density model: MAF's masked networks run the other way.

Every layer's network reads the noise instead of the data, so that a sample is one pass of each network, and a density
takes D steps a layer, in which the noise of one dimension after another is solved for:

    x_i = mu_i(z_before(i)) + exp(a_i(z_before(i))) z_i,      log |det dz/dx| = -sum_i a_i,
    loss = -E_data[log N(z; 0, I) + sum over layers of log |det dz/dx|].

The D steps do the work of about one pass, and so does their gradient, which sweeps back over the dimensions instead of
unrolling the steps (``nn/masked_flows.py``). A layer of MAF with the same network and (mu, sigma) replaced by
(-mu / sigma, 1 / sigma), sigma = exp(a), maps its data to noise exactly as this one maps noise to data.

Batch normalisation stands before each layer, as in MAF, with the moments of the whole training set in evaluation.

Shapes and units: x is raw (b, *shape), z (b, D); log-densities are in nats per example. On binary and discrete data the
number is the uniform dequantisation bound (``flow.py``).

Paper: Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling, "Improving Variational Inference with Inverse
Autoregressive Flow", NeurIPS 2016, https://arxiv.org/abs/1606.04934.

Different from the paper: there the flow is the posterior of a VAE, of which only samples and their own density are
asked, so that the D steps never occur; here it is the model of the data itself, to set beside MAF. It has no context.
The scale is an exponential where the paper takes a sigmoid gate (``iaf_vae`` has the posterior and the gate).
"""

from collections.abc import Sequence
from typing import Literal

from dgmbench.data.spec import DataSpec
from dgmbench.models.flow.flow import Dequantised
from dgmbench.models.flow.maf import Maf
from dgmbench.nn.bijections import Bijection
from dgmbench.nn.masked import MaskedMlp
from dgmbench.nn.masked_flows import InverseMaskedAffine


class Iaf(Maf):
    """Inverse autoregressive flow (Kingma et al. 2016) as a model of data.

    Args:
        spec: the data space; images are flattened in C order.
        layers: masked networks in the stack.
        hidden_sizes: hidden layers of each network.
        order: ``alternating`` (C order and its reverse in turn) or ``random`` (an order of its own for each layer).
        batch_norm: batch normalisation before each layer.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        layers: int = 5,
        hidden_sizes: Sequence[int] = (100, 100),
        order: Literal["alternating", "random"] = "alternating",
        batch_norm: bool = True,
    ) -> None:
        super().__init__(spec, layers=layers, hidden_sizes=hidden_sizes, order=order, batch_norm=batch_norm)

    @staticmethod
    def _layer(net: MaskedMlp) -> Bijection:
        return InverseMaskedAffine(net)


class DequantisedIaf(Dequantised, Iaf):
    """The flow on data with levels: a bound in place of the density."""


Iaf.on_levels = DequantisedIaf

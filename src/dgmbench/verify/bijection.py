"""Flows: the log-determinant against the dense Jacobian, the inverse both ways, and both ways' log-determinants.

A round trip proves little by itself: a wrong constant or a pair of wrong signs passes it. The determinant of the whole
Jacobian, by automatic differentiation, does not let them pass; and a draw of noise that does not come back shows a map
that is not onto.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dgmbench.models.contract import HasBijection, Model
from dgmbench.nn.bijections import Bijection
from dgmbench.verify.check import Check, undecided
from dgmbench.verify.subject import Subject

EXAMPLES = 6
MOST_DIMENSIONS = 256
ROUNDING = 1e-7
"""What float64 may lose on the way, relative: a chain of flows is not as well conditioned as one step."""


def checks(subject: Subject, model: Model) -> Iterator[Check]:
    """All checks of this module for one state of the model, in double precision."""
    if not isinstance(model, HasBijection) or not isinstance(model.bijection, Bijection):
        return
    flow = model.bijection
    x = model.continuous(subject.data.x[:EXAMPLES], generator=subject.generator("continuous"))
    z, log_det = flow(x)
    note = f"one pass for {flow.orientation}; {len(x)} examples"
    yield _determinant(flow, x, log_det)
    back, inverse_log_det = flow.inverse(z)
    allowed = ROUNDING + flow.inverse_error
    yield _at_most("data come back from noise", _relative(back, x), allowed, note)
    noise = torch.randn(z.shape, generator=subject.generator("noise"), dtype=z.dtype)
    yield _at_most("noise comes back from data", _relative(flow(flow.inverse(noise)[0])[0], noise), allowed, note)
    name, difference = "log-determinants of both ways are opposite", float((log_det + inverse_log_det).abs().max())
    if flow.log_det_error == torch.inf:
        yield undecided(name, "the log-determinant is random")
    else:
        slack = 2 * flow.log_det_error + ROUNDING * (1 + float(log_det.abs().max())) + flow.inverse_error * z[0].numel()
        yield _at_most(name, difference, slack, "nats; at the same point")


def _determinant(flow: Bijection, x: Tensor, log_det: Tensor) -> Check:
    name, dim = "log|det| is that of the Jacobian", x[0].numel()
    if flow.log_det_error == torch.inf:
        return undecided(name, "the log-determinant is random; the model's own tests have its mean")
    if dim > MOST_DIMENSIONS:
        return undecided(name, f"a dense Jacobian of {dim} dimensions is too large; verify a smaller instance")
    true = torch.linalg.slogdet(jacobian(lambda v: flow(v)[0], x)).logabsdet
    slack = flow.log_det_error + ROUNDING * (1 + float(true.abs().max()))
    kind = f"to within {flow.log_det_error:.3g} as stated" if flow.log_det_error else "exact"
    return _at_most(name, float((true - log_det).abs().max()), slack, f"nats, {dim} dimensions, {kind}; by autograd")


@torch.enable_grad()
def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The Jacobian (b, d, d) of a map of examples (b, *shape), one backward pass for each output dimension.

    Examples must not see each other, so that the gradient of a sum over them has each one's own row.
    """
    x = x.detach().requires_grad_()
    z = function(x).flatten(1)
    rows = [torch.autograd.grad(z[:, i].sum(), x, retain_graph=True)[0].flatten(1) for i in range(z.shape[1])]
    return torch.stack(rows, 1)


def _relative(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to 1 + |b|; infinite if anything is not finite."""
    difference = ((a - b).abs() / (1 + b.abs())).max()
    return float(difference) if bool(difference.isfinite()) else float("inf")


def _at_most(name: str, value: float, allowed: float, note: str) -> Check:
    return Check(name, value, allowed, value <= allowed, note)

"""NADE's recurrence against the naive O(HD^2) computation, autograd, gradcheck and counts of its operations."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dgmbench.nn.nade import NadeWeights, nade_ancestral, nade_parameters

SETTINGS = [(1, "sigmoid", False), (3, "sigmoid", True), (2, "relu", True), (1, "relu", False)]


def weights(dim, hidden, parameters=1, *, rho=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = [(dim, hidden), (hidden,), (dim, parameters, hidden), (dim, parameters)]
    leaves = [torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for s in shapes]
    factors = (0.3 + torch.rand(dim, generator=g, dtype=torch.float64)).requires_grad_() if rho else None
    return NadeWeights(*leaves, factors)


def naive(x, w, activation):
    """Every conditional by a network of its own on the inputs before it: O(HD^2)."""
    out = []
    for t in range(x.shape[1]):
        a = w.bias + x[:, :t] @ w.weight[:t]
        a = a if w.rho is None else w.rho[t] * a
        h = a.sigmoid() if activation == "sigmoid" else a.relu()
        out.append(h @ w.out_weight[t].T + w.out_bias[t])
    return torch.stack(out)


def values(n, dim, seed=1):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("block", [1, 2, 5, 7, 20, None])
@pytest.mark.parametrize(("parameters", "activation", "rho"), SETTINGS)
def test_equals_the_naive_computation_with_its_gradients(parameters, activation, rho, block):
    w, x = weights(11, 6, parameters, rho=rho), values(4, 11).requires_grad_()
    fast, slow = nade_parameters(x, w, activation, block=block), naive(x, w, activation)
    assert torch.allclose(fast, slow, rtol=1e-12, atol=1e-12)
    leaves = [x, *(t for t in w if t is not None)]
    direction = torch.randn_like(slow)
    ours = torch.autograd.grad(fast, leaves, direction)
    theirs = torch.autograd.grad(slow, leaves, direction, allow_unused=True, materialize_grads=True)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("ones", [0.0, 0.05, 0.2, 0.4])
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
@pytest.mark.parametrize("dim", [1, 11, 70])
def test_mostly_zero_inputs_equal_the_naive_computation(dim, activation, ones):
    """Their states are treated once each; values other than 0 and 1 as well, and blocks that do not divide D."""
    w, x = weights(dim, 6), values(9, dim)
    x = torch.where(torch.rand(9, dim, generator=torch.Generator().manual_seed(2)) < ones, x, 0.0)
    fast, slow = nade_parameters(x, w, activation), naive(x, w, activation)
    assert "Sparse" in type(fast.grad_fn).__name__
    assert torch.allclose(fast, slow, rtol=1e-11, atol=1e-12)
    direction = torch.randn_like(slow)
    ours = torch.autograd.grad(fast, w[:4], direction)
    for a, b in zip(ours, torch.autograd.grad(slow, w[:4], direction), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def test_gradcheck_for_mostly_zero_inputs():
    w = weights(7, 3)
    x = (torch.rand(4, 7, generator=torch.Generator().manual_seed(0)) < 0.3).double()
    assert 0 < x.mean() < 0.5
    assert torch.autograd.gradcheck(lambda *leaves: nade_parameters(x, NadeWeights(*leaves, None), "sigmoid"), w[:4])


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize(("parameters", "activation", "rho"), SETTINGS)
def test_gradcheck_of_the_hand_written_backward(parameters, activation, rho, block):
    w, x = weights(5, 3, parameters, rho=rho), values(2, 5).requires_grad_()
    leaves = tuple(t for t in w if t is not None)

    def f(x, *leaves):
        return nade_parameters(x, NadeWeights(*leaves, *(() if rho else (None,))), activation, block=block)

    assert torch.autograd.gradcheck(f, (x, *leaves))


def test_a_second_backward_gives_the_same_gradients_and_a_double_one_is_refused():
    w, x = weights(6, 4), values(3, 6)
    out = nade_parameters(x, w, "sigmoid").square().sum()
    first = torch.autograd.grad(out, w.weight, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(out, w.weight, retain_graph=True)[0])
    (once,) = torch.autograd.grad(out, w.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()


def test_inputs_that_need_no_gradient_get_none():
    w, x = weights(6, 4), values(3, 6)
    nade_parameters(x, w, "sigmoid").sum().backward()
    assert x.grad is None
    assert all(t.grad is not None for t in w[:4])


class Work(TorchDispatchMode):
    """Counts multiplications of matrix products (in place or not), and elements of everything else."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        factors = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "addmm_": (1, 2), "baddbmm": (1, 2)}
        name = func.overloadpacket.__name__
        if name in factors:
            a, b = (args[i] for i in factors[name])
            self.total += a.numel() * b.shape[-1]
        elif isinstance(out, torch.Tensor) and not func.is_view:
            self.total += out.numel()
        return out


@pytest.mark.parametrize("block", [1, 4, None])
def test_the_work_grows_as_hidden_times_dim(block):
    """Four times the D or H, four times the work of forward and backward; the naive way takes 16 times for D."""

    def work(dim, hidden, f):
        w, x = weights(dim, hidden), values(8, dim)
        x = x if block else (x > 0.8).double()  # one way for few zeros, another for many
        with Work() as counter:
            f(x, w).sum().backward()
        return counter.total

    def ours(x, w):
        return nade_parameters(x, w, "sigmoid", block=block)

    def slow(x, w):
        return naive(x, w, "sigmoid")

    base = work(64, 32, ours)
    assert base < 40 * 8 * 64 * 32, "a small multiple of B D H"
    assert 3.6 < work(256, 32, ours) / base < 4.4
    assert 3.5 < work(64, 128, ours) / base < 4.2
    assert work(256, 32, slow) / work(64, 32, slow) > 10


@pytest.mark.parametrize("ones", [None, 0.2])
def test_memory_for_the_backward_pass_does_not_grow_with_dim(ones):
    """What autograd saves besides inputs and parameters is one B x H array, whatever D is."""

    def saved(dim):
        w, x = weights(dim, 16), values(8, dim)
        x = x if ones is None else (torch.rand_like(x) < ones).double()
        kept = []
        own = {t.untyped_storage().data_ptr() for t in (*w[:4], x)}

        def pack(t):
            if t.untyped_storage().data_ptr() not in own:
                kept.append(t)
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            nade_parameters(x, w, "sigmoid")
        return sum(t.numel() for t in kept if t.shape != (dim, 8))  # the inputs' transpose is no activation

    assert saved(40) == saved(80) == 8 * 16


@pytest.mark.parametrize(("parameters", "activation", "rho"), SETTINGS)
def test_ancestral_values_see_the_parameters_of_the_density(parameters, activation, rho):
    w = weights(9, 5, parameters, rho=rho)
    noise, seen = torch.randn(9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), []

    def draw(t, p):
        seen.append(p)
        return (p.sum(0) + noise[t]).tanh()

    x = nade_ancestral(6, draw, w, activation)
    assert torch.allclose(torch.stack(seen).transpose(1, 2), nade_parameters(x, w, activation), rtol=1e-10)


@pytest.mark.parametrize("block", [3, None])
def test_autocast_leaves_the_recurrence_in_full_precision(block):
    w, x = weights(6, 4), (values(3, 6) > 0.5).double()
    plain = nade_parameters(x, w, "sigmoid", block=block)
    grads = torch.autograd.grad(plain.sum(), w.weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        cast = nade_parameters(x, w, "sigmoid", block=block)
        again = torch.autograd.grad(cast.sum(), w.weight)[0]
    assert torch.equal(plain, cast)
    assert torch.equal(grads, again)

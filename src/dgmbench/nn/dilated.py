"""Gated causal convolutions with dilation, residual and skip connections: in parallel, or one time step at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class Layer(NamedTuple):
    """The matrix from the h and z of the layer before to a, b and h of this one, and views of ``Queues.rows``."""

    matrix: Tensor
    abh: Tensor
    ab: Tensor
    a: Tensor
    b: Tensor
    hz: Tensor
    z: Tensor


@dataclass
class Queues:
    """What a generation of n sequences keeps from one time to the next, and its weights as a few matrices.

    Attributes:
        past: The layers' past inputs, each layer's places used in turns (all places, n, c).
        places: How many places a layer has, for each of its past taps (layers, kernel - 1).
        shift: The place that a tap reads at time 0; the first tap's is the oldest, which the present then takes.
        begin: A layer's first place (layers, 1).
        rows: a, b, h and z of every layer at the present time (layers, n, 4 c).
        of_past: From the past taps to a row, of which h and z have none (layers, (kernel - 1) c, 4 c).
        bias: Of a row, z with none (layers, 1 or n, 4 c).
        of_local: From local features to every layer's a and b (f, layers * 2 c).
        layers: The layers in turn.
        top: Matrices and biases from every layer's z to the sum of the skips, to the hidden layer, and to the output.
        time: Steps taken.
    """

    past: Tensor
    places: Tensor
    shift: Tensor
    begin: Tensor
    rows: Tensor
    of_past: Tensor
    bias: Tensor
    of_local: Tensor | None
    layers: list[Layer]
    top: list[tuple[Tensor, Tensor]]
    time: int = 0


class Block(nn.Module):
    """z = tanh(filter) * sigmoid(gate), both of the present and the past; z gives the residual and the skip."""

    def __init__(
        self, channels: int, skip_channels: int, *, kernel: int, dilation: int, residual: bool, classes: int, local: int
    ) -> None:
        super().__init__()
        self.dilation, self.residual = dilation, channels if residual else 0
        self.gates = nn.Conv1d(channels, 2 * channels, kernel, dilation=dilation)
        self.out = nn.Conv1d(channels, self.residual + skip_channels, 1)
        self.of_class = nn.Embedding(classes, 2 * channels) if classes else None
        self.of_local = nn.Conv1d(local, 2 * channels, 1, bias=False) if local else None

    def forward(
        self, h: Float[Tensor, "b c t"], y: Int[Tensor, " b"] | None, local: Float[Tensor, "b f t"] | None
    ) -> tuple[Tensor, Tensor]:
        """The next layer's input (b, c, t), and the skip (b, s, t)."""
        reach = (self.gates.kernel_size[0] - 1) * self.dilation
        gates = self.gates(F.pad(h, (reach, 0)))
        if self.of_class is not None:
            gates = gates + self.of_class(y)[..., None]
        if self.of_local is not None:
            gates = gates + self.of_local(local)
        a, b = gates.chunk(2, dim=1)
        out = self.out(torch.tanh(a) * torch.sigmoid(b))
        if not self.residual:
            return h, out
        return h + out[:, : self.residual], out[:, self.residual :]


class DilatedStack(nn.Module):
    """WaveNet's network: (b, c, t) -> (b, outputs, t), output t seeing inputs at t and before only.

    Args:
        channels: Residual channels c.
        outputs: Numbers at each time.
        dilations: Distance of the taps of each layer.
        kernel: Taps of each layer.
        skip_channels: Width of the skip connections and of the layers that follow their sum.
        classes: Number of classes of a global condition ``y`` (b,), a bias for every gate; 0 for none.
        local: Features of a local condition (b, local, t), one value for every time; 0 for none.
    """

    def __init__(
        self, channels: int, outputs: int, *, dilations: Sequence[int], kernel: int = 2, skip_channels: int,
        classes: int = 0, local: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.channels, self.kernel, self.dilations = channels, kernel, tuple(dilations)
        self.blocks = nn.ModuleList(
            Block(
                channels, skip_channels, kernel=kernel, dilation=dilation, residual=i < len(dilations) - 1,
                classes=classes, local=local,
            )
            for i, dilation in enumerate(dilations)
        )  # fmt: skip
        self.hidden = nn.Conv1d(skip_channels, skip_channels, 1)
        self.top = nn.Conv1d(skip_channels, outputs, 1)

    @property
    def receptive_field(self) -> int:
        """How many inputs an output sees, the present one included: 1 + (kernel - 1) * sum of dilations."""
        return 1 + (self.kernel - 1) * sum(self.dilations)

    def forward(
        self,
        h: Float[Tensor, "b c t"],
        y: Int[Tensor, " b"] | None = None,
        local: Float[Tensor, "b f t"] | None = None,
    ) -> Float[Tensor, "b o t"]:
        """All times at once."""
        total: Tensor | None = None
        for block in self.blocks:
            h, skip = block(h, y, local)
            total = skip if total is None else total + skip
        assert total is not None
        return self.top(F.relu(self.hidden(F.relu(total))))

    @torch.no_grad()
    def start(self, n: int, y: Int[Tensor, " n"] | None = None) -> Queues:
        """Empty queues for n sequences; what depends on classes and weights alone is computed here.

        A column of small layers takes the time of its calls, so they are made few. With half of the gate's b, one tanh
        serves both: sigmoid(2 b) = (1 + tanh b) / 2. And a layer does not wait for its input h' = h + R z + r: a, b and
        h' are linear in h and z of the layer before, so that one product adds all three to what the past gives.
        """
        top, c, taps = self.top.weight, self.channels, self.kernel - 1
        dilations = torch.tensor(self.dilations, device=top.device)[:, None]
        assert self.hidden.bias is not None
        assert self.top.bias is not None
        places = (taps * dilations).repeat(1, taps)
        shift = (-dilations * torch.arange(taps, 0, -1, device=top.device)).remainder(places)
        rows = top.new_zeros(len(self.blocks), n, 4 * c)
        one, half = torch.eye(c).to(top), torch.tensor([1.0, 0.5]).to(top).repeat_interleave(c)
        to_h, r = one, top.new_zeros(c)  # h' = [h, z] to_h + r; the first layer's is given
        layers, of_past, bias, of_local, skip, skip_bias = [], [], [], [], [], top.new_zeros(())
        for block, row in zip(self.blocks, rows, strict=True):
            assert isinstance(block, Block)
            assert block.gates.bias is not None
            assert block.out.bias is not None
            gates = block.gates.weight.permute(2, 1, 0) * half  # (kernel, c, 2 c), the present tap last
            constant = block.gates.bias if block.of_class is None else block.gates.bias + block.of_class(y)
            constant = (constant * half + r @ gates[-1]).view(-1, 2 * c)
            layers.append(
                Layer(
                    torch.cat((to_h @ gates[-1], to_h), dim=1), row[:, : 3 * c], row[:, : 2 * c],
                    row[:, :c], row[:, c : 2 * c], row[:, 2 * c :], row[:, 3 * c :],
                )
            )  # fmt: skip
            of_past.append(F.pad(gates[:-1].flatten(0, 1), (0, 2 * c)))
            bias.append(F.pad(torch.cat((constant, r.expand(len(constant), c)), dim=1), (0, c)))
            if block.of_local is not None:
                of_local.append(block.of_local.weight[..., 0].T * half)
            out = block.out.weight[..., 0].T / 2
            skip.append(out[:, block.residual :])
            skip_bias = skip_bias + block.out.bias[block.residual :]
            if block.residual:
                to_h, r = torch.cat((one, out[:, : block.residual])), block.out.bias[: block.residual]
        return Queues(
            past=top.new_zeros(int(places[:, 0].sum()), n, c),
            places=places,
            shift=shift,
            begin=places[:, :1].cumsum(0) - places[:, :1],
            rows=rows,
            of_past=torch.stack(of_past),
            bias=torch.stack(bias),
            of_local=torch.cat(of_local, dim=1) if of_local else None,
            layers=layers,
            top=[
                (torch.cat(skip), skip_bias),
                (self.hidden.weight[..., 0].T.contiguous(), self.hidden.bias),
                (top[..., 0].T.contiguous(), self.top.bias),
            ],
        )

    def step(
        self, queues: Queues, h: Float[Tensor, "n c"], local: Float[Tensor, "n f"] | None = None
    ) -> Float[Tensor, "n o"]:
        """The output at the next time for its input, in the work of one column: O(layers), whatever the past's length.

        The queues hold each layer's inputs of the last (kernel - 1) * dilation times, and are changed in place. Without
        gradients, best in ``torch.inference_mode``, whose calls are the cheapest.
        """
        layers, n, c, rows = len(self.dilations), len(h), self.channels, queues.rows
        slots = (queues.shift + queues.time).remainder_(queues.places).add_(queues.begin)
        past = queues.past.index_select(0, slots.flatten()).view(layers, -1, n, c)
        past = past[:, 0] if self.kernel == 2 else past.transpose(1, 2).flatten(2)
        torch.baddbmm(queues.bias, past, queues.of_past, out=rows)
        if queues.of_local is not None:
            assert local is not None
            rows[..., : 2 * c] += (local @ queues.of_local).view(n, layers, 2 * c).transpose(0, 1)
        before = h
        for matrix, abh, ab, a, b, hz, z in queues.layers:
            abh.addmm_(before, matrix)
            ab.tanh_()
            torch.addcmul(a, a, b, out=z)  # twice z; the matrices that follow have the half
            before = hz
        queues.past.index_copy_(0, slots[:, 0], rows[..., 2 * c : 3 * c])
        queues.time += 1
        out = rows[..., 3 * c :].transpose(0, 1).flatten(1)
        (skip, skip_bias), (hidden, hidden_bias), (top, top_bias) = queues.top
        out = torch.addmm(skip_bias, out, skip).relu_()
        out = torch.addmm(hidden_bias, out, hidden).relu_()
        return torch.addmm(top_bias, out, top)

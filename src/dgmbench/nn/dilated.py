"""Gated causal convolutions with dilation, residual and skip connections: in parallel, or one time step at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Column:
    """One layer of a generation: its past inputs (places, n, channels), used in turns, and its weights as matrices."""

    past: Tensor
    dilation: int
    gates: Tensor
    gates_bias: Tensor
    local: Tensor | None
    residual: Tensor | None
    residual_bias: Tensor | None


@dataclass
class Queues:
    """What a generation keeps from one time to the next."""

    columns: list[Column]
    skip: Tensor
    skip_bias: Tensor
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
        self.kernel, self.dilations = kernel, tuple(dilations)
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
        """Empty queues for n sequences; what depends on classes and weights alone is computed here."""
        columns, skips, skip_bias = [], [], torch.zeros((), device=self.top.weight.device, dtype=self.top.weight.dtype)
        for block in self.blocks:
            assert isinstance(block, Block)
            assert block.gates.bias is not None
            assert block.out.bias is not None
            r, out, bias = block.residual, block.out.weight[..., 0], block.gates.bias
            columns.append(
                Column(
                    past=bias.new_zeros((self.kernel - 1) * block.dilation, n, block.gates.in_channels),
                    dilation=block.dilation,
                    gates=block.gates.weight.transpose(1, 2).flatten(1).T.contiguous(),
                    gates_bias=bias if block.of_class is None else bias + block.of_class(y),
                    local=None if block.of_local is None else block.of_local.weight[..., 0].T.contiguous(),
                    residual=out[:r].T.contiguous() if r else None,
                    residual_bias=block.out.bias[:r] if r else None,
                )
            )
            skips.append(out[r:].T)
            skip_bias = skip_bias + block.out.bias[r:]
        return Queues(columns, torch.cat(skips), skip_bias)

    @torch.no_grad()
    def step(
        self, queues: Queues, h: Float[Tensor, "n c"], local: Float[Tensor, "n f"] | None = None
    ) -> Float[Tensor, "n o"]:
        """The output at the next time for its input, in the work of one column: O(layers), whatever the past's length.

        The queues hold each layer's inputs of the last (kernel - 1) * dilation times, and are changed in place.
        """
        outputs = []
        for column in queues.columns:
            past, places = column.past, len(column.past)
            taps = [past[(queues.time - j * column.dilation) % places] for j in range(self.kernel - 1, 0, -1)]
            gates = torch.addmm(column.gates_bias, torch.cat([*taps, h], dim=1), column.gates)
            if column.local is not None:
                assert local is not None
                gates.addmm_(local, column.local)
            past[queues.time % places] = h
            a, b = gates.chunk(2, dim=1)
            z = a.tanh().mul_(b.sigmoid())
            outputs.append(z)
            if column.residual is not None and column.residual_bias is not None:
                h = torch.addmm(h, z, column.residual).add_(column.residual_bias)
        queues.time += 1
        total = torch.addmm(queues.skip_bias, torch.cat(outputs, dim=1), queues.skip)
        hidden = F.relu(F.linear(F.relu(total), self.hidden.weight[..., 0], self.hidden.bias))
        return F.linear(hidden, self.top.weight[..., 0], self.top.bias)

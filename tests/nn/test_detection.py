"""Heads of detectors: losses by hand, over the regions that count alone."""

import torch
from torch.nn import functional as F

from dgmbench.nn.detection import (
    Perception,
    RegionDiscriminator,
    Said,
    box_loss,
    class_loss,
    mean_where,
    overlap,
    right,
)
from dgmbench.nn.regions import encoded

BOXES = torch.tensor([[0.0, 0, 4, 4], [1, 1, 3, 5], [2, 2, 8, 8]])
PROPOSALS = torch.tensor([[0.0, 0, 4, 4], [0, 1, 3, 5], [2, 3, 8, 9]])


def said(n: int = 3) -> Said:
    g = torch.Generator().manual_seed(0)
    return Said(torch.randn(n, 5, generator=g), torch.randn(n, 4, generator=g))


def test_class_and_box_losses_by_hand() -> None:
    one, label, counts = said(), torch.tensor([2, -1, 4]), torch.tensor([True, False, True])
    log_p = one.classes.log_softmax(1)
    torch.testing.assert_close(class_loss(one, label, counts), -(log_p[0, 2] + log_p[2, 4]) / 2)
    apart = (one.box - encoded(BOXES, PROPOSALS)).abs()
    smooth = torch.where(apart < 1, apart**2 / 2, apart - 0.5).sum(1)
    torch.testing.assert_close(box_loss(one, BOXES, PROPOSALS, counts), (smooth[0] + smooth[2]) / 2)


def test_what_does_not_count_has_no_gradient_and_none_is_zero() -> None:
    box, counts = torch.randn(3, 4, requires_grad=True), torch.tensor([False, True, False])
    unknown = torch.where(counts[:, None], BOXES, -BOXES)  # no box at all
    box_loss(Said(torch.randn(3, 5), box), unknown, PROPOSALS, counts).backward()
    assert (box.grad[0] == 0).all()
    assert (box.grad[1] != 0).all()
    nothing = torch.zeros(3, dtype=torch.bool)
    assert mean_where(torch.tensor([1.0, torch.nan, 2.0]), nothing) == 0


def test_right_classes_and_overlaps() -> None:
    one = Said(torch.eye(3), encoded(BOXES, PROPOSALS))
    assert right(one, torch.tensor([0, 2, 2])).tolist() == [1, 0, 1]
    torch.testing.assert_close(overlap(one, BOXES, PROPOSALS), torch.ones(3))


def test_heads_see_what_they_should() -> None:
    torch.manual_seed(0)
    net, x = RegionDiscriminator(2, 8, 5, channels=3, hidden=6, bias=False), torch.randn(4, 2, 8, 8)
    output, found = net(x)
    assert (output.shape, found.classes.shape, found.box.shape) == ((4,), (4, 5), (4, 4))
    torch.testing.assert_close(output, net.real(net.trunk(x))[:, 0])
    heads = Perception(7, 5, hidden=6)
    features = torch.randn(4, 7)
    h = F.relu(heads.trunk[2](F.relu(heads.trunk[0](features))))
    torch.testing.assert_close(heads(features).box, heads.box(h))

"""How the numbers of a run are named in ``result.json``: a metric, then what sets it apart from its namesakes.

``elbo`` is of the weights that were best on validation and of the test split, ``elbo@final`` of the last weights,
``elbo@valid`` of another split; ``elbo#1a2b3c4d`` was measured under the protocol of that id, before the metric was
measured again under another.
"""

from collections.abc import Mapping
from typing import Any

from dgmbench.evaluation.names import CONDITIONAL

EARLIER = "#"
_BOUND = "iw_bound_k"


def without_protocol(name: str) -> str:
    """The name of a metric without the id of an earlier protocol.

    >>> without_protocol("elbo@final#1a2b3c4d")
    'elbo@final'
    """
    return name.partition(EARLIER)[0]


def bound_samples(name: str) -> int | None:
    """k of an importance-weighted bound of k samples, else None.

    >>> bound_samples("iw_bound_k50"), bound_samples("iw_bound_k50_bits_per_dim"), bound_samples("elbo")
    (50, None, None)
    >>> bound_samples("conditional_iw_bound_k50")
    50
    """
    bound = name.removeprefix(CONDITIONAL)
    k = bound.removeprefix(_BOUND)
    return int(k) if bound.startswith(_BOUND) and k.isdigit() else None


def is_called(name: str, wanted: str) -> bool:
    """Whether a metric is the wanted one, where all importance-weighted bounds are called ``iw_bound``; of conditional
    data the likelihoods given the condition stand for those that other data have.
    """
    alone = name.removeprefix(CONDITIONAL)
    return wanted in (name, alone) or (wanted == "iw_bound" and bound_samples(name) is not None)


def together(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a run after another measurement: what it measured under another protocol keeps that in its name.

    The name alone stands for the last measurement; what was measured under the same protocol is replaced.
    """
    merged = dict(before)
    for name, metric in now.items():
        earlier = merged.pop(name, None)
        merged.pop(f"{name}{EARLIER}{metric['protocol_id']}", None)
        if earlier is not None and earlier["protocol_id"] != metric["protocol_id"]:
            merged[f"{name}{EARLIER}{earlier['protocol_id']}"] = earlier
    return merged | dict(now)


def under_protocol(metrics: Mapping[str, Any], name: str, protocol: str) -> dict[str, Any]:
    """The metric of that name that was measured under a protocol; ``KeyError`` if there is none."""
    last = metrics.get(name)
    return last if last is not None and last["protocol_id"] == protocol else metrics[f"{name}{EARLIER}{protocol}"]

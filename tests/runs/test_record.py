"""What a result remembers of several measurements: numbers of one name under different protocols, none twice."""

from typing import Any

from dgmbench.runs.metric_names import together, under_protocol
from dgmbench.runs.record import bring_forward, is_measured, remember


def number(value: float, protocol: str) -> dict[str, Any]:
    return {"value": value, "protocol_id": protocol}


def found(protocol: str, **values: float) -> dict[str, Any]:
    metrics = {name: number(value, protocol) for name, value in values.items()}
    return {"metrics": metrics, "protocols": {protocol: {"k": protocol}}, "versions": {"torch": "2"}}


def test_a_number_replaces_that_of_its_own_protocol_and_no_other() -> None:
    first, same, other = number(1.0, "a"), number(2.0, "a"), number(3.0, "b")
    assert together({"elbo": first}, {"elbo": same}) == {"elbo": same}
    assert together({"elbo": first}, {"elbo": other}) == {"elbo": other, "elbo#a": first}
    assert together({"elbo": other, "elbo#a": first}, {"elbo": same}) == {"elbo": same, "elbo#b": other}
    assert under_protocol({"elbo": other, "elbo#a": first}, "elbo", "a") == first


def test_a_result_keeps_the_protocols_that_its_numbers_have() -> None:
    result: dict[str, Any] = {}
    remember(result, {"name": "one", "k": 1}, found("a", elbo=1.0, distance=2.0))
    remember(result, {"name": "two", "k": 2}, found("b", elbo=3.0))
    assert set(result["protocols"]) == {"a", "b"}
    # other code gives the same protocol another id; nothing refers to the old one
    remember(result, {"name": "one", "k": 1}, {**found("c", elbo=1.0, distance=2.0), "protocols": {"c": {}, "d": {}}})
    assert set(result["protocols"]) == {metric["protocol_id"] for metric in result["metrics"].values()}
    assert "d" not in result["protocols"]
    assert [entry["name"] for entry in result["measured"]] == ["two", "one"]


def test_the_numbers_of_a_protocol_come_forward() -> None:
    result: dict[str, Any] = {}
    for name, k, protocol, value in (("one", 1, "a", 1.0), ("two", 2, "b", 3.0)):
        remember(result, {"name": name, "k": k}, found(protocol, elbo=value))
    assert is_measured(result, {"name": "whatever", "k": 1})
    assert not is_measured(result, {"name": "one", "k": 3})
    assert not bring_forward(result, {"name": "two", "k": 2})
    assert bring_forward(result, {"name": "one", "k": 1})
    assert result["metrics"] == {"elbo": number(1.0, "a"), "elbo#b": number(3.0, "b")}

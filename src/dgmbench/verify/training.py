"""Interrupted and resumed training ends in the same bits as uninterrupted training."""

from collections.abc import Iterator

from dgmbench.verify.check import Check
from dgmbench.verify.subject import Subject, Training, changed, listed, tensors


def checks(subject: Subject) -> Iterator[Check]:
    """Cut a training at several updates, continue each in a new model from the saved state, compare the ends."""
    end, saved = subject.trained
    reference, moments = tensors(end.model), _moments(end)
    wrong = []
    for cut, state in saved.items():
        resumed = Training(subject.model(copy=1 + cut), subject).load(state).run()
        names = changed(reference, tensors(resumed.model)) + changed(moments, _moments(resumed))
        wrong += [f"{name} (cut at {cut})" for name in names]
    note = (
        f"cut at update {', '.join(map(str, saved))} of {len(end.plan)}; parameters, buffers, optimisers, bit for bit"
    )
    yield Check("resumed training equals uninterrupted", f"{len(wrong)} differ", "0", not wrong, listed(wrong) or note)


def _moments(training: Training) -> dict:
    """The optimisers' state as a flat dictionary of tensors."""
    return {
        f"optimiser of {name}, parameter {index}, {key}": value
        for name, optimiser in training.optimisers.items()
        for index, state in optimiser.state_dict()["state"].items()
        for key, value in state.items()
    }

"""Whether a model and a data set fit, told from their cards before anything is loaded."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, nearest

Binarise = Literal["none", "threshold", "dynamic"]

BESIDE = ("given", "step_labels", "lengths")
"""What a data set's card may say of what comes beside the values."""

EMBEDDED = {
    "binary": ("digits_binary",),
    "discrete": ("digits", "digits32"),
    "real": ("toy2d", "tabular"),
    "counts": ("topics",),
    "tokens": ("text_small",),
}


def binarise_mode(data_cfg: Mapping[str, Any]) -> Binarise:
    """The binarisation that a data config asks for."""
    mode = data_cfg.get("binarise", "none")
    mode = "none" if mode in (None, False) else mode
    if mode == "none":
        return "none"
    if mode == "threshold":
        return "threshold"
    if mode == "dynamic":
        return "dynamic"
    raise UserError(
        nearest(
            str(mode),
            ("none", "threshold", "dynamic"),
            what="way to binarise (data.binarise)",
        )
    )


def binarised_spec(spec: DataSpec, mode: Binarise, name: str) -> DataSpec:
    """The spec after binarisation, which takes single-channel grey levels."""
    if mode == "none":
        return spec
    if not _grey(spec):
        raise UserError(
            f"data.binarise={mode} takes grey levels, but {name} is {spec}; leave it at data.binarise=none."
        )
    return DataSpec(spec.shape, "binary", num_classes=spec.num_classes, class_names=spec.class_names, given=spec.given)


def spec_from_card(data_cfg: Mapping[str, Any]) -> DataSpec | None:
    """The spec that a resolved data config announces on its card, or None where only the data themselves tell."""
    name, card, mode = (
        str(data_cfg.get("name")),
        data_cfg.get("card") or {},
        binarise_mode(data_cfg),
    )
    kind, shape, levels = card.get("kind"), card.get("shape"), card.get("levels")
    if kind is None or shape is None:
        return None
    if len(shape) == 3 and isinstance(shape[1], Sequence) and len(shape[1]) == 2:
        shape = (shape[0], *shape[1])  # a size [height, width] stands in both places
    if not all(isinstance(side, int) for side in shape):
        return None  # the reader says what is wrong with it
    grey = None
    if kind == "binary" and levels and levels > 2:
        grey = DataSpec(tuple(shape), "discrete", levels, card.get("classes"))
    if kind == "binary" and grey is not None and mode == "none":
        raise UserError(f"data={name} is binary; for grey levels choose data={name.replace('_binary', '')}.")
    others = {key: card[key] for key in ("end", "sampling_rate", *BESIDE) if key in card}
    spec = grey if grey is not None else DataSpec(tuple(shape), kind, levels, card.get("classes"), **others)
    return binarised_spec(spec, mode, name)


def check_pair(model_card: Mapping[str, Any], spec: DataSpec, data_name: str, model_name: str) -> None:
    """Raise a UserError that says what to do if the model does not take this data; its card says what it takes."""
    kinds: Sequence[str] = model_card.get("kinds") or ()
    if kinds and spec.kind not in kinds:
        raise UserError(
            f"model={model_name} takes {_either(kinds)} data, but data={data_name} is {spec}; "
            f"{_instead(model_card, kinds, spec)}."
        )
    if model_card.get("image") and not spec.is_image:
        raise UserError(
            f"model={model_name} takes images (c, h, w), but data={data_name} is {spec}; "
            f"choose {_choices(model_card, kinds)}."
        )
    if model_card.get("labels") and spec.num_classes == 0 and spec.given is None:
        raise UserError(
            f"model={model_name} takes data with labels, and data={data_name} has none; choose data with classes "
            "(dgm list data)."
        )
    _check_beside(model_card, spec, data_name, model_name)
    sizes: Sequence[int] = model_card.get("sizes") or ()
    if sizes and spec.is_image and not (spec.shape[1] == spec.shape[2] and spec.shape[1] in sizes):
        fitting = [name for name, side in (("digits", 8), ("digits32", 32)) if side in sizes]
        hint = f"choose data={_either(fitting)} or another set of that size" if fitting else "choose a set of that size"
        raise UserError(
            f"model={model_name} takes images with sides of {_either([str(size) for size in sizes])}, but "
            f"data={data_name} is {spec.shape[1]}x{spec.shape[2]}; {hint}."
        )


def _check_beside(model_card: Mapping[str, Any], spec: DataSpec, data_name: str, model_name: str) -> None:
    """Conditions and lengths need a model that takes them, and a model of p(x | given) needs conditions."""
    takes = model_card.get("given")
    if spec.given is not None and not takes:
        raise UserError(
            f"data={data_name} gives a condition with every example ({spec.given}), but model={model_name} takes none; "
            "choose a model whose card says given: true (dgm list), or data without conditions."
        )
    if takes is True and spec.given is None:
        raise UserError(
            f"model={model_name} models x given a condition, and data={data_name} gives none; choose data with "
            "conditions (dgm list data)."
        )
    if spec.lengths and not model_card.get("lengths"):
        raise UserError(
            f"data={data_name} has sequences of different lengths, but model={model_name} would count their padding; "
            "choose a model whose card says lengths: true, or data of one length."
        )


def _grey(spec: DataSpec) -> bool:
    """Whether the values are grey levels, which can be binarised; those of colours and waveforms are not."""
    colour = spec.is_image and spec.shape[0] != 1
    return spec.kind == "discrete" and not colour and spec.sampling_rate is None


def _either(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _choices(model_card: Mapping[str, Any], kinds: Sequence[str]) -> str:
    """The model's own default data, then other sets that need no download."""
    own = [model_card["data"]] if model_card.get("data") else []
    taken = [k for k in kinds or EMBEDDED if not (model_card.get("image") and k not in ("binary", "discrete"))]
    names = dict.fromkeys(own + [name for kind in taken for name in EMBEDDED.get(kind, ())])
    return f"data={_either(list(names))}" if names else "a data set of that kind (dgm list data)"


def _instead(model_card: Mapping[str, Any], kinds: Sequence[str], spec: DataSpec) -> str:
    advice = [f"choose {_choices(model_card, kinds)}"]
    if "binary" in kinds and _grey(spec):
        advice.insert(0, "binarise it with data.binarise=threshold or data.binarise=dynamic")
    return ", or ".join(advice)

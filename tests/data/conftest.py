"""What the tests of the data layer share: resolved data configs, and the folder of real sets where there is one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

CHECKOUT = Path(__file__).parents[2]
SHARED = CHECKOUT.parent / "shared"

Config = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def config() -> Config:
    """``config("mnist", binarise="dynamic")``: the resolved data group with some options set."""

    def make(name: str, **options: Any) -> dict[str, Any]:
        composed = OmegaConf.create({"data": OmegaConf.load(CHECKOUT / "configs" / "data" / f"{name}.yaml")})
        composed.data.update(options)
        resolved: Any = OmegaConf.to_container(composed, resolve=True)
        return resolved["data"]

    return make


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder that holds ``unpack_data.py`` and the real sets in ``data/``."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the real sets are not here: there is no ../shared/data")
    return SHARED

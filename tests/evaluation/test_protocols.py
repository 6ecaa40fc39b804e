"""The page of protocols names every protocol that ships, and every key that one can have."""

import re
from dataclasses import fields
from pathlib import Path

from dgmbench.config import config_dir
from dgmbench.config import schemas as settings

PAGE = Path(__file__).parents[2] / "docs" / "protocols.md"


def test_the_page_names_every_file_and_every_key() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE))
    files = {path.stem for path in (config_dir() / "protocol").glob("*.yaml")}
    keys = {field.name for field in fields(settings.Protocol)} - {"name"}
    assert named == files | keys

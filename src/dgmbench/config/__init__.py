"""What was typed means: files, composition, completion, identity, cards and signatures of configurations."""

from dgmbench.config.completion import (
    checked,
    complete,
    complete_data,
    complete_hardware,
    complete_paths,
    complete_protocol,
)
from dgmbench.config.composition import compose, hydra_errors, search_path_override
from dgmbench.config.files import config_dir, import_from, options, read_settings, search_path
from dgmbench.config.identity import config_hash, run_name
from dgmbench.config.objects import instantiate, resolve
from dgmbench.config.overrides import quoted, rewrite

__all__ = [
    "checked",
    "complete",
    "complete_data",
    "complete_hardware",
    "complete_paths",
    "complete_protocol",
    "compose",
    "config_dir",
    "config_hash",
    "hydra_errors",
    "import_from",
    "instantiate",
    "options",
    "quoted",
    "read_settings",
    "resolve",
    "rewrite",
    "run_name",
    "search_path",
    "search_path_override",
]

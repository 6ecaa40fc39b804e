"""The parser of a verb's flags and overrides; its errors are sentences."""

import argparse
import textwrap
from typing import NoReturn

from dgmbench.config.files import import_from, options, search_path
from dgmbench.errors import UserError

CONFIG_DIR = "a folder of your own configurations (DIR/model/NAME.yaml); your code in DIR or here can be imported"

AFTER_CFG = {("--cfg", "job"), ("--cfg", "all")}


class Parser(argparse.ArgumentParser):
    """A parser of one verb's flags and overrides, whose errors are sentences."""

    def __init__(self, verb: str, description: str, epilog: str, usage: str = "[key=value ...]") -> None:
        super().__init__(
            prog=f"dgm {verb}",
            usage=f"dgm {verb} {usage}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("overrides", nargs="*", metavar="key=value", help="settings, in Hydra's syntax")

    def error(self, message: str) -> NoReturn:
        """A wrong flag is bad input like any other."""
        raise UserError(f"{message[:1].upper()}{message[1:]}; '{self.prog} --help' shows what there is.")

    def add_config_flags(self) -> "Parser":
        """The flags of verbs that compose a configuration."""
        self.add_argument("--config-dir", action="append", default=[], metavar="DIR", help=CONFIG_DIR)
        self.add_argument("--cfg", action="store_true", help="print the complete configuration and stop")
        return self


def choices(*groups: str) -> str:
    """The groups of a verb's configuration with their options, for ``--help``."""
    lines = []
    for group in groups:
        names = options(group)
        text = ", ".join(names)
        if len(text) > 300:
            text = text[:300].rpartition(",")[0] + f", ... ({len(names)}; dgm list {group})"
        lines.append(textwrap.fill(text, 100, initial_indent=f"  {group:<10} ", subsequent_indent=" " * 13))
    return "choices (key=NAME):\n" + "\n".join(lines)


def parse(parser: argparse.ArgumentParser, rest: list[str]) -> argparse.Namespace:
    """The flags and overrides among the words; the user's own code can be imported from then on."""
    # other tools, Hydra's own among them, name after --cfg what is to be shown
    words = [word for before, word in zip(["", *rest], rest, strict=False) if (before, word) not in AFTER_CFG]
    arguments = parser.parse_intermixed_args(words)
    own = search_path(getattr(arguments, "config_dir", []))[:-1]
    if own:
        import_from(own)
    return arguments

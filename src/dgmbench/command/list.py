"""``dgm list``: what there is to choose from."""

from dgmbench.command import listing
from dgmbench.command.parser import CONFIG_DIR, Parser, parse
from dgmbench.errors import harmless


def run(rest: list[str]) -> int:
    """Run ``dgm list`` with these words and return the exit code."""
    parser = Parser(
        "list",
        "Show the models by family, or the choices of a group, or one model's card.",
        """examples:
  dgm list
  dgm list data
  dgm list optimizer
  dgm list model=vae
""",
        "[GROUP | model=NAME]",
    )
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR", help=CONFIG_DIR)
    arguments = parse(parser, rest)

    words = arguments.overrides or ["model"]
    for word in words:
        print(harmless(listing.listing(word, arguments.config_dir)))
    return 0

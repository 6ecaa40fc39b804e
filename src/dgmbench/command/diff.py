"""``dgm diff``: show what two runs differ in."""

from pathlib import Path

from dgmbench.command.parser import Parser, parse
from dgmbench.command.tables import print_table
from dgmbench.errors import UserError


def run(rest: list[str]) -> int:
    """Run ``dgm diff`` with these words and return the exit code."""
    parser = Parser(
        "diff",
        "Show what two runs differ in: settings, versions, protocols and numbers.",
        """examples:
  dgm diff outputs/vae-digits_binary-s0-1a2b3c4d outputs/vae-digits_binary-s1-5e6f7a8b
""",
        "DIR DIR",
    )
    arguments = parse(parser, rest)
    if len(arguments.overrides) != 2:
        raise UserError("dgm diff takes the folders of two runs: dgm diff DIR DIR.")
    from dgmbench.bench.report.difference import differences

    rows = differences(*(Path(word).expanduser() for word in arguments.overrides))
    if rows:
        print_table(("where", "what", "first", "second", "difference"), rows)
    else:
        print("The runs do not differ.")
    return 0

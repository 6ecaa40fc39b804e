"""``dgm report``: show what a folder of runs holds."""

from pathlib import Path

from dgmbench.command.parser import Parser, parse
from dgmbench.command.tables import complain
from dgmbench.errors import UserError, say


def run(rest: list[str]) -> int:
    """Run ``dgm report`` with these words and return the exit code."""
    parser = Parser(
        "report",
        "Write what a folder of runs holds into it: report.html to look at, report.md, report.tex and report.csv.\n"
        "The last line printed is the path of the page.",
        """examples:
  dgm report outputs/bench/demo
  dgm report outputs
""",
        "DIR",
    )
    arguments = parse(parser, rest)
    if len(arguments.overrides) != 1:
        raise UserError("dgm report takes one folder: dgm report DIR.")
    from dgmbench.bench.report import write_report_with_notes

    page, notes = write_report_with_notes(Path(arguments.overrides[0]).expanduser())
    for note in notes[:20]:
        complain(f"note: {note}")
    if len(notes) > 20:
        complain(f"note: {len(notes) - 20} more notes stand at the top of the page.")
    say(page)
    return 0

"""``dgm rerun``: repeat a run from its folder."""

from pathlib import Path

from dgmbench.command.parser import CONFIG_DIR, Parser, parse
from dgmbench.command.tables import complain
from dgmbench.command.train import train_one
from dgmbench.errors import UserError


def run(rest: list[str]) -> int:
    """Run ``dgm rerun`` with these words and return the exit code."""
    parser = Parser(
        "rerun",
        "Repeat a run from the configuration in its folder: resume it, or do nothing if it is done; with --fresh\n"
        "train it anew below another folder, to see whether the same numbers come out.",
        """examples:
  dgm rerun outputs/vae-digits_binary-s0-1a2b3c4d
  dgm rerun outputs/vae-digits_binary-s0-1a2b3c4d --fresh /tmp/again
""",
        "DIR [--fresh OUTPUTS]",
    )
    parser.add_argument("--fresh", metavar="OUTPUTS", help="the folder to put a new run into")
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR", help=CONFIG_DIR)
    arguments = parse(parser, rest)
    if len(arguments.overrides) != 1:
        raise UserError("dgm rerun takes the folder of one run: dgm rerun DIR.")
    from dgmbench.runs.folder import RunFolder
    from dgmbench.runs.rerun import check_name, version_warning

    folder = RunFolder.existing(arguments.overrides[0].removeprefix("run="))
    outputs = Path(arguments.fresh).expanduser() if arguments.fresh else folder.path.absolute().parent
    if warning := version_warning(folder):
        complain(warning)
    cfg = folder.read_config()
    if not arguments.fresh:
        check_name(folder)
    return train_one({**cfg, "paths": {**cfg["paths"], "outputs": str(outputs)}})

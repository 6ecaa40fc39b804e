"""``dgm export``: many samples of a run for other programs."""

from pathlib import Path

from dgmbench.command.parser import CONFIG_DIR, Parser, parse
from dgmbench.errors import say


def run(rest: list[str]) -> int:
    """Run ``dgm export`` with these words and return the exit code."""
    parser = Parser(
        "export",
        "Write many samples of a trained run, a PNG each or one .npz file (key x), for other programs; or its\n"
        "weights, in a folder to share. The last line printed is where they are.",
        """examples:
  dgm export run=outputs/vae-digits_binary-s0-1a2b3c4d n=50000
  dgm export run=DIR n=10000 form=npz to=samples.npz
  dgm export run=DIR n=1000 label=3 to=threes
  dgm export run=DIR what=weights to=my_vae    model.safetensors, what it was trained on and with, and a page about it;
                                               dgm sample run=my_vae and dgmbench.load_run("my_vae") read it
""",
        "run=DIR [what=samples|weights] [n=50000] [seed=0] [checkpoint=best|final] [label=CLASS] [form=images|npz]\n"
        "                  [to=PATH]",
    )
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR", help=CONFIG_DIR)
    arguments = parse(parser, rest)
    from dgmbench.config import checked, complete_hardware, complete_paths, compose, resolve
    from dgmbench.config.schemas import Exporting

    cfg = resolve(compose("export", arguments.overrides, config_dirs=arguments.config_dir))
    paths, hardware = complete_paths(cfg.pop("paths")), complete_hardware(cfg.pop("hardware"))
    run, to = Path(str(cfg.pop("run"))).expanduser(), cfg.pop("to")
    exporting = checked(cfg, Exporting, "")
    target = None if to is None else Path(str(to)).expanduser()
    if exporting["what"] == "weights":
        from dgmbench.runs.share import share_run

        say(share_run(run, rule=exporting["checkpoint"], to=target, data_root=Path(paths["data"])))
        return 0
    from dgmbench.runs.export import export_run

    del exporting["what"]
    more = {"accelerator": hardware["accelerator"], "data_root": Path(paths["data"])}
    say(export_run(run, **exporting, to=target, **more))
    return 0

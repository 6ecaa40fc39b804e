"""``dgm sample``: draw from a trained run."""

from pathlib import Path

from dgmbench.command.parser import CONFIG_DIR, Parser, parse
from dgmbench.errors import say


def run(rest: list[str]) -> int:
    """Run ``dgm sample`` with these words and return the exit code."""
    parser = Parser(
        "sample",
        "Draw samples of a trained run into its folder: a PNG, an .npz with the raw values (key x), and a .wav of\n"
        "sound or a .txt of text.",
        """examples:
  dgm sample run=outputs/vae-digits_binary-s0-1a2b3c4d
  dgm sample run=DIR n=100 seed=1 checkpoint=final
  dgm sample run=DIR show=completions n=8        the lower halves of eight test images, drawn given the upper ones
  dgm sample run=DIR show=translations n=8       source | translated to another domain | and back
  dgm sample run=DIR show=enhanced n=8           given | baseline | ours | truth
  dgm sample run=DIR 'caption="a small red circle in the middle"'    of a model of pictures given a caption
  dgm sample run=DIR 'size=[48,144]' n=8         pictures of another size, of a model that draws them of any
  dgm sample run=DIR show=traversals n=500       one row a dimension of the code, named after its factor
  dgm sample run=DIR show=panels                 what the model sees in test examples: boxes, masks, enlarged parts
  dgm sample run=DIR show=topics                 the ten likeliest words of each topic
  dgm sample run=DIR show=parts                  test examples, and what of each each part of the model explains
  dgm sample run=DIR show=styles n=6             mixtures of styles, or each style in every class
""",
        "run=DIR [n=64] [seed=0] [checkpoint=best|final] [label=CLASS] [temperature=T]\n"
        "                  [truncation=T] ['caption=\"WORDS\"'] ['size=[HEIGHT,WIDTH]']\n"
        "                  [show=samples|reconstructions|interpolations|traversals|completions|translations|\n"
        "                        enhanced|panels|topics|predictions|alignments|growth|styles|parts]",
    )
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR", help=CONFIG_DIR)
    arguments = parse(parser, rest)
    from dgmbench.config import checked, complete_hardware, complete_paths, compose, resolve
    from dgmbench.config.schemas import Sampling

    cfg = resolve(compose("sample", arguments.overrides, config_dirs=arguments.config_dir))
    paths, hardware = complete_paths(cfg.pop("paths")), complete_hardware(cfg.pop("hardware"))
    run = Path(str(cfg.pop("run"))).expanduser()
    sampling = checked(cfg, Sampling, "")
    from dgmbench.runs.sampling import sample_run

    for path in sample_run(run, **sampling, accelerator=hardware["accelerator"], data_root=Path(paths["data"])):
        say(path)
    return 0

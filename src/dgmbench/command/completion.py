"""Tab completion: the shells' scripts ask ``dgm complete -- WORDS``, which answers from files alone."""

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from dgmbench.command.listing import arguments_of, groups
from dgmbench.config.files import options, read_settings
from dgmbench.errors import UserError

BASH = r"""# dgm completion for bash: eval "$(dgm completion bash)", for instance in ~/.bashrc
_dgm() {
    local line="${COMP_LINE:0:COMP_POINT}" word current cut=""
    local -a words=()
    read -ra words <<< "$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    current="${words[${#words[@]}-1]}"
    # bash replaces only what follows the last word break, and '=' is one
    [[ "$COMP_WORDBREAKS" == *=* && "$current" == *=* ]] && cut="${current%"${current##*=}"}"
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("${word#"$cut"}")
        [[ "$word" == *[=/] ]] && compopt -o nospace 2>/dev/null
    done < <("${words[0]}" complete -- "${words[@]:1}" 2>/dev/null)
}
complete -F _dgm dgm
"""

ZSH = r"""#compdef dgm
# dgm completion for zsh: eval "$(dgm completion zsh)", after compinit in ~/.zshrc
_dgm() {
    local -a found unfinished
    found=("${(@f)$(${words[1]} complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    unfinished=(${(M)found:#*[=/]})
    found=(${found:#*[=/]})
    (( $#unfinished )) && compadd -S '' -- $unfinished
    (( $#found )) && compadd -- $found
}
compdef _dgm dgm
"""

FISH = r"""# dgm completion for fish: dgm completion fish | source, for instance in ~/.config/fish/config.fish
function __dgm_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    $words[1] complete -- $words[2..-1] "$current" 2>/dev/null
end
complete -c dgm -f -a '(__dgm_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}

GROUPS = {
    "train": ("model", "data", "trainer", "hardware", "optimizer", "logger", "protocol"),
    "verify": ("model",),
    "evaluate": ("protocol", "hardware"),
    "sample": ("hardware",),
    "export": ("hardware",),
    "score": ("data", "protocol", "hardware"),
    "bench": ("suite", "executor", "hardware", "protocol"),
}
KEYS = {
    "train": ("experiment=", "seed=", "paths.outputs=", "paths.data=", "optimizer.schedule.name="),
    "evaluate": ("run=", "paths.data="),
    "bench": ("model=", "seed=", "trainer.budget=", "paths.outputs=", "paths.data="),
    "sample": ("run=", "n=", "seed=", "checkpoint=", "label=", "temperature=", "paths.data="),
    "show": ("run=",),
    "export": ("run=", "n=", "seed=", "checkpoint=", "label=", "form=", "to=", "paths.data="),
    "score": ("samples=", "against=", "to=", "paths.data="),
}
VALUES = {
    "checkpoint": ("best", "final"),
    "form": ("images", "npz"),
    "optimizer.schedule.name": ("constant", "linear", "cosine"),
    "hardware.accelerator": ("auto", "cpu", "gpu"),
    "hardware.precision": ("32", "bf16"),
}
FLAGS = {
    "train": ("-m", "--multirun", "--cfg", "--config-dir"),
    "evaluate": ("--cfg", "--config-dir"),
    "sample": ("--config-dir",),
    "export": ("--config-dir",),
    "score": ("--config-dir",),
    "verify": ("--cfg", "--config-dir"),
    "list": ("--config-dir",),
    "rerun": ("--fresh", "--config-dir"),
    "bench": ("--dry-run", "--retry", "--stale", "--config-dir"),
}


def run(rest: list[str]) -> int:
    """Print the script of one shell."""
    if len(rest) != 1 or rest[0] not in SCRIPTS:
        raise UserError("dgm completion prints the script for one shell: dgm completion bash, zsh or fish.")
    print(SCRIPTS[rest[0]], end="")
    return 0


def candidates(words: Sequence[str], verbs: Iterable[str]) -> list[str]:
    """The completions of the last of ``words`` (what follows ``dgm``, up to the cursor), the first one of ``verbs``."""
    if len(words) <= 1:
        found: Iterable[str] = (*verbs, "--help", "--version")
    else:
        found = _of_verb(words[0], words[1:-1], words[-1])
    return sorted({word for word in found if word.startswith(words[-1] if words else "")})


def _of_verb(verb: str, before: Sequence[str], current: str) -> Iterable[str]:
    if current.startswith("-"):
        return (*FLAGS.get(verb, ()), "--help")
    if verb == "completion":
        return SCRIPTS
    config_dirs = [folder for flag, folder in pairwise(before) if flag == "--config-dir"]
    if verb in ("rerun", "report", "diff"):
        return _run_folders(current)
    if verb == "list":
        return (*groups(config_dirs), *(f"model={name}" for name in options("model", config_dirs)))
    key, equals, value = current.partition("=")
    if equals:
        return [f"{key}={word}" for word in _values(key, value, config_dirs)]
    return _keys(verb, before, config_dirs)


def _values(key: str, value: str, config_dirs: Sequence[str]) -> Iterable[str]:
    if key == "run":
        return _run_folders(value)
    earlier, comma, _ = value.rpartition(",")  # train -m model=vae,ma<TAB>
    return [f"{earlier}{comma}{name}" for name in VALUES.get(key) or options(key.replace(".", "/"), config_dirs)]


def _keys(verb: str, before: Sequence[str], config_dirs: Sequence[str]) -> Iterable[str]:
    for group in GROUPS.get(verb, ()):
        yield f"{group}="
        if group == "model":
            chosen = [word.partition("=")[2] for word in before if word.startswith("model=")]
            yield from (f"model.{key}=" for name in chosen for key in _model_arguments(name, config_dirs))
            continue
        names = [word.partition("=")[2] for word in before if word.startswith(f"{group}=")]
        for name in names or [n for n in ("default", "auto", "adam", "local") if n in options(group, config_dirs)]:
            inside = read_settings(group, name, config_dirs)
            inside = (read_settings(group, "default", config_dirs) | inside) if "defaults" in inside else inside
            yield from (f"{group}.{key}=" for key in inside if key not in ("defaults", "card", "name", "_target_"))
    yield from KEYS.get(verb, KEYS["train"] if verb == "verify" else ())


def _model_arguments(name: str, config_dirs: Sequence[str]) -> Iterable[str]:
    settings = read_settings("model", name, config_dirs)
    yield from (key for key in settings if key not in ("defaults", "card", "_target_"))
    yield from (key for key, _ in arguments_of(str(settings.get("_target_", ""))))


def _run_folders(typed: str) -> Iterable[str]:
    folder = typed.rpartition("/")[0] + "/" if "/" in typed else os.environ.get("DGM_OUTPUTS", "outputs") + "/"
    for path in sorted(Path(folder).expanduser().glob("*/")):
        if (path / "config.yaml").is_file():
            yield folder + path.name
        elif not path.name.startswith("."):
            yield f"{folder}{path.name}/"

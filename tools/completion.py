"""Prints a script that completes `weir` in a shell: commands, files, names of configurations and of settings.

    source <(python -m tools.completion bash)                                  (bash; put it in ~/.bashrc)
    python -m tools.completion zsh > ~/.zfunc/_weir                            (zsh; a folder of fpath)
    python -m tools.completion fish > ~/.config/fish/completions/weir.fish     (fish)

Written here and not by argcomplete or shtab: those would import every command, which takes seconds at each Tab.
Settings are asked of `weir settings --names` when they are completed, which takes about a second.
"""

from __future__ import annotations

from configs.shipped import shipped_configs
from tools.command_line import command_parser
from tools.commands import COMMANDS

_BASH = """\
_weir() {
    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD - 1]}"
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "@COMMANDS@ --help --version" -- "$current"))
    elif [[ ${COMP_WORDS[1]} == completion ]]; then
        COMPREPLY=($(compgen -W "bash zsh fish" -- "$current"))
    elif [[ ${COMP_WORDS[1]} == settings && $current != -* ]]; then
        COMPREPLY=($(compgen -W "$(weir settings --names 2>/dev/null)" -- "$current"))
    elif [[ $previous == --config ]]; then
        COMPREPLY=($(compgen -W "@CONFIGS@" -- "$current") $(compgen -f -X '!*.toml' -- "$current") \\
            $(compgen -d -S / -- "$current"))
        [[ ${COMPREPLY[0]} == */ ]] && compopt -o nospace
    elif [[ $previous == --set ]]; then
        COMPREPLY=($(compgen -S = -W "$(weir settings --names 2>/dev/null)" -- "$current"))
        compopt -o nospace
    elif [[ $current == -* ]]; then
        local options="--help"
        case " @CONFIGURED@ " in *" ${COMP_WORDS[1]} "*) options+=" --config --set" ;; esac
        COMPREPLY=($(compgen -W "$options" -- "$current"))
    fi
}
complete -o bashdefault -o default -F _weir weir
"""
_ZSH = """\
#compdef weir
_weir() {
    local -a commands
    commands=(
@DESCRIBED@
    )
    if ((CURRENT == 2)); then
        _describe command commands
    elif [[ $words[2] == completion ]]; then
        compadd bash zsh fish
    elif [[ $words[2] == settings && $PREFIX != -* ]]; then
        compadd -- ${(f)"$(weir settings --names 2>/dev/null)"}
    elif [[ $words[CURRENT-1] == --config ]]; then
        compadd -- @CONFIGS@
        _files -g '*.toml'
    elif [[ $words[CURRENT-1] == --set ]]; then
        compadd -S = -- ${(f)"$(weir settings --names 2>/dev/null)"}
    elif [[ $PREFIX == -* ]]; then
        compadd -- --help
        [[ " @CONFIGURED@ " == *" $words[2] "* ]] && compadd -- --config --set
    else
        _files
    fi
}
# As a file of fpath this is the body of the function _weir; as a script it defines it.
if [[ $funcstack[1] == _weir ]]; then _weir "$@"; else compdef _weir weir; fi
"""
_FISH = """\
@DESCRIBED@
complete -c weir -n '__fish_seen_subcommand_from completion' -f -a 'bash zsh fish'
complete -c weir -n '__fish_seen_subcommand_from settings' -f -a '(weir settings --names 2>/dev/null)'
complete -c weir -n '__fish_seen_subcommand_from @CONFIGURED@' -l config -r -a '@CONFIGS@' -d 'configuration'
complete -c weir -n '__fish_seen_subcommand_from @CONFIGURED@' -l set -x \\
    -a '(weir settings --names 2>/dev/null | string replace -r \\'$\\' \\'=\\')' -d 'change a setting'
complete -c weir -l help -d 'show help'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def script(shell: str) -> str:
    """The completion script for a shell: "bash", "zsh" or "fish"."""
    replaced = {
        "COMMANDS": " ".join(COMMANDS),
        "CONFIGURED": " ".join(name for name, command in COMMANDS.items() if command.configured),
        "CONFIGS": " ".join(shipped_configs()),
        "DESCRIBED": "\n".join(_described(shell)),
    }
    text = _SCRIPTS[shell]
    for name, value in replaced.items():
        text = text.replace(f"@{name}@", value)
    return text


def _described(shell: str) -> list[str]:
    """One line for each command, with its help in quotes of the shell."""
    lines = []
    for name, command in COMMANDS.items():
        if shell == "zsh":
            help_text = command.help.replace("'", "'\\''")
            lines.append(f"        '{name}:{help_text}'")
        else:
            help_text = command.help.replace("\\", "\\\\").replace("'", "\\'")
            lines.append(f"complete -c weir -n __fish_use_subcommand -f -a {name} -d '{help_text}'")
    return lines


def main() -> None:
    parser = command_parser("completion", __doc__)
    parser.add_argument("shell", choices=_SCRIPTS)
    print(script(parser.parse_args().shell), end="")


if __name__ == "__main__":
    main()

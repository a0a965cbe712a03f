"""Shell completion: the printed scripts, loaded by the shells themselves where they are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rankgap.cli import main
from rankgap.commands import COMMANDS
from rankgap.model.methods import METHODS
from rankgap.run.config import TrainConfig
from rankgap.run.flags import flag, parameters

SHELLS = ("bash", "zsh", "fish")
# Programs that load a script and print what the shell then offers for the last of the given words.
BASH = r"""
source "$0"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
$(complete -p rankgap | sed 's/.*-F \([^ ]*\).*/\1/') rankgap "${@: -1}" "${@: -2:1}"
printf '%s\n' "${COMPREPLY[@]}"
"""
FISH = """
source $argv[1]
complete --do-complete (string join ' ' -- $argv[2..])
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each shell's script, as the command prints it."""
    folder = tmp_path_factory.mktemp("scripts")
    for shell in SHELLS:
        with pytest.MonkeyPatch.context() as patch, (folder / shell).open("w") as file:
            patch.setattr("sys.stdout", file)
            with pytest.raises(SystemExit, match="0"):
                main(["--print-completion", shell])
    return folder


def in_bash(script: Path, *words: str) -> set[str]:
    """What bash offers for the last word of a command line."""
    command = ["bash", "--noprofile", "--norc", "-c", BASH, str(script), *words]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=script.parent)
    assert found.stderr == ""
    return set(found.stdout.split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["rankgap", ""], set(COMMANDS)),
        (["rankgap", "tr"], {"train"}),
        (["rankgap", "train", "--meth"], {"--method"}),
        (["rankgap", "train", "--method", ""], set(METHODS)),
        (["rankgap", "train", "--method", "sim"], {"simsiam"}),
        (["rankgap", "inspect", "--method", "sim"], {"simsiam"}),
        (["rankgap", "map", "features.npy", "--method", ""], {"tsne", "pca"}),
        (
            ["rankgap", "train", "--method", "byol", "--precision", ""],
            {"auto", "bf16-mixed", "16-mixed", "32-true"},
        ),
        (["rankgap", "train", "--protocol", "linear_"], {"linear_sgd"}),
        (["rankgap", "evaluate", "runs/a", "--branch", ""], {"online", "target"}),
        (["rankgap", "score", "a-"], {"a-run"}),
        (["rankgap", "train", "--config", "a-"], {"a-run", "a-file.yaml"}),
    ],
)
def test_bash_offers_commands_flags_choices_and_paths(words: list[str], offered: set[str], scripts: Path) -> None:
    (scripts / "a-run").mkdir(exist_ok=True)
    (scripts / "a-file.yaml").touch()
    assert in_bash(scripts / "bash", *words) == offered


def test_bash_offers_every_flag_of_train(scripts: Path) -> None:
    flags = {flag(name) for name in parameters(TrainConfig)}
    assert in_bash(scripts / "bash", "rankgap", "train", "--") == {*flags, "--config", "--help"}


def test_fish_offers_the_same(scripts: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    for words, offered in (("rankgap tra", "train"), ("rankgap train --method byo", "byol")):
        command = ["fish", "--no-config", "-c", FISH, str(scripts / "fish"), *words.split()]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        assert found.stdout.split("\t")[0] == offered


@pytest.mark.parametrize("shell", SHELLS)
def test_every_script_is_one_that_its_shell_reads(shell: str, scripts: Path) -> None:
    text = (scripts / shell).read_text()
    assert all(name in text for name in (*COMMANDS, *METHODS, "bf16-mixed"))
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert subprocess.run([shell, "-n", str(scripts / shell)], capture_output=True, check=False).stderr == b""


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--print-completion", "ksh"], "unknown shell 'ksh': did you mean 'zsh'? Expected one of bash, fish,"),
        (["--print-completion=cmd"], "unknown shell 'cmd'"),
        (["--print-completion"], "argument --print-completion: expected one argument"),
        (["--print-complet=bash"], "did you mean '--print-completion'?"),
        (["train", "--print-completion", "bash"], "unknown flag '--print-completion'"),
    ],
)
def test_an_unknown_shell_is_one_line(given: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert says in error
    assert len(error.strip().splitlines()) == 1


def test_a_value_that_is_not_offered_is_still_refused_by_the_reader(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--precision", "bf16"]) == 2
    assert "unknown --precision 'bf16': did you mean 'bf16-mixed'?" in capsys.readouterr().err

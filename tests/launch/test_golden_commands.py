"""The commands of every path are those of the golden files, and the pages show what is printed."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import recipes
from launch.path import VERBS
from launch.paths import PATHS
from qwenvl_jax.runtime import exit_codes
from qwenvl_jax.runtime.errors import UserError
from tests.launch import make_golden_commands as golden

ROOT = Path(__file__).parents[2]
# What a command line may hold: anything but NUL and lone surrogates.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@pytest.mark.parametrize("name", golden.NAMES)
def test_commands_are_those_of_the_golden_files(name: str) -> None:
    assert golden.golden(PATHS[name]) == (golden.FOLDER / f"{name}.txt").read_text(), (
        "run `python -m tests.launch.make_golden_commands` and look at the difference"
    )


@pytest.mark.slow
def test_pages_show_what_is_printed() -> None:
    check = [sys.executable, "-m", "launch.recipes", "--check"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun `python -m launch.recipes`"


def test_a_recipe_fails_on_the_page_of_mistakes_alone() -> None:
    mistake = "python -m launch tpu_wm create"
    with pytest.raises(UserError, match=r"exit code 2 instead of 0 \(error: there is no path 'tpu_wm'"):
        recipes.output_of(mistake)
    assert recipes.output_of(mistake, exit_codes.MISTAKE).startswith("error: there is no path")
    with pytest.raises(UserError, match="exit code 0 instead of 2"):
        recipes.output_of("python -m launch where --topology=v5p-8", exit_codes.MISTAKE)


def test_help_has_every_path_verb_and_flag() -> None:
    command = [sys.executable, "-m", "launch", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert all(path.summary in shown for path in PATHS.values())
    assert all(purpose in shown for purpose in VERBS.values())
    text = "\n".join(file.read_text() for file in (ROOT / "launch").glob("*.py"))
    defined = set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', text))
    assert set(re.findall(r"^  --(?:\[no\])?(\w+):", shown, re.MULTILINE)) == defined | {"config"}


# Plays `python` in the blocks of a page: runs the launcher without --execute, and predicts at once.
PLAYED = """
set -eu
python() {
  case "$2" in
    launch) for word; do shift; [ "$word" = --execute ] || set -- "$@" "$word"; done; "$PYTHON" "$@";;
    qwenvl_jax.plan) echo '{"step_seconds_roofline": 1.0, "step_seconds_cycles": 2.0}';;
  esac
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/launch.md"])
def test_commands_of_pages_run_as_they_are_shown(page: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    variables = "\n".join(re.findall(r"^\w+=\S+$", "\n".join(blocks), re.MULTILINE))
    script = [block for block in blocks if "python -m launch" in block]
    assert script
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", "\n".join([PLAYED, variables, *script])],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "gcloud compute tpus tpu-vm create" in done.stdout


@pytest.mark.parametrize("name", ["tpu_vm", "queued_resource", "gce"])
def test_commands_that_create_say_how_to_delete(name: str) -> None:
    job = golden.job_of("v5p-1024", "on_demand")
    commands = PATHS[name].builders["create"](job)
    deleted = [command.arguments for command in PATHS[name].builders["delete"](job)]
    undone = [command.undo for command in commands if command.creates]
    assert undone[::-1] == deleted
    assert all(bool(command.creates) == bool(command.undo) for command in commands)


@pytest.mark.parametrize("name", ["tpu_vm", "queued_resource", "gce"])
def test_every_text_names_the_zone_and_no_secret(name: str) -> None:
    job = dataclasses.replace(golden.job_of("v5p-1024", "on_demand"), secrets={"KEY": "name-of-secret"})
    for build in PATHS[name].builders.values():
        for command in build(job):
            assert command.why.endswith("."), command.why
            if command.arguments[0] in ("gcloud", "xargs") and "storage" not in command.arguments:
                where = (*command.arguments, *command.input_from)
                assert {"--zone=us-east5-a", "--region=us-east5", "--instance-template-region=us-east5"} & set(where)


def ssh(command_line: str, tmp_path: Path) -> list[str]:
    """Runs a printed command in a shell whose `gcloud` hands --command to another shell, as ssh does.

    Returns:
      The arguments with which `python` was started on the host.
    """
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    host = tmp_path / "launch" / "stage2"
    (host / "source").mkdir(parents=True, exist_ok=True)
    (host / "venv" / "bin").mkdir(parents=True, exist_ok=True)
    scripts = {
        programs / "gcloud": 'case "$*" in *list-instances*) echo host-1; exit;; esac\n'
        'for word; do case "$word" in --command=*) cd "$HOME" && exec sh -c "${word#--command=}";; esac; done\n',
        host / "venv" / "bin" / "python": "printf '%s\\0' \"$@\"\n",
    }
    for path, text in scripts.items():
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(["sh", "-c", command_line], env=environment, capture_output=True, check=True, cwd=tmp_path)
    return done.stdout.decode().split("\0")[:-1]


@settings(max_examples=20, deadline=None)
@given(arguments=st.lists(texts, max_size=3), value=texts, name=st.sampled_from(["tpu_vm", "queued_resource", "gce"]))
def test_arguments_pass_two_shells_unchanged(
    arguments: list[str], value: str, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    job = dataclasses.replace(
        golden.job_of("v5p-1024", "on_demand"), command=("python", *arguments), environment={"VALUE": value}
    )
    (command,) = PATHS[name].builders["run"](job)
    seen = ssh(command.shell, tmp_path_factory.mktemp("host"))
    assert seen[:4] == ["-m", "launch.host", "start", "--workdir=gs://bucket/runs/it's 2"]
    assert seen[4] == f"--env=VALUE={value}"
    assert seen[seen.index("--") + 1 :] == ["python", *arguments]
    assert "WANDB" in " ".join(seen) and shlex.split(command.shell)

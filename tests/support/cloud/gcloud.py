"""The stand-in for `gcloud`. It parses first, then asks who is logged in, then looks at the cloud, as gcloud does."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.support.cloud import compute, container, tpus, world
from tests.support.cloud.flags import Parsed, parse, split
from tests.support.cloud.gcloud_commands import COMMANDS
from tests.support.cloud.output import show
from tests.support.cloud.world import Refusal

VERSION = "Google Cloud SDK 548.0.0"


def main(arguments: list[str]) -> int:
    """Runs one command line; its exit code."""
    world.record_call("gcloud", arguments)
    try:
        if arguments == ["--version"]:
            arguments = ["version"]
        command, rest = split(arguments, COMMANDS)
        parsed = parse(command, rest, COMMANDS[command])
        return _run(parsed)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return refusal.code


def _run(parsed: Parsed) -> int:
    with world.locked() as state:
        settings = state["settings"]
    group = parsed.command.removeprefix("alpha.").removeprefix("beta.")
    if group == "version" or group == "info":
        print(VERSION)
        return 0
    if group == "auth.list":
        accounts = [{"account": settings["account"], "status": "ACTIVE"}] if settings["account"] else []
        if not accounts and not parsed.get("format"):
            print("\nNo credentialed accounts.\n\nTo login, run:\n  $ gcloud auth login `ACCOUNT`\n", file=sys.stderr)
        elif accounts:
            print(show(parsed, accounts, "status account"))
        return 0
    if group in ("config.get-value", "config.get"):
        value = {"project": settings["project"], "core/project": settings["project"], "account": settings["account"],
                 "core/account": settings["account"]}.get(parsed.name, "")  # fmt: skip
        print(value if value else "(unset)", file=sys.stdout if value else sys.stderr)
        return 0
    if not settings["account"]:
        raise parsed.refuse(
            "You do not currently have an active account selected.\nPlease run:\n\n  $ gcloud auth login\n\nto obtain "
            "new credentials.\n\nIf you have already logged in with a different account, run:\n\n  $ gcloud config set "
            "account ACCOUNT\n\nto select an already authenticated account to use."
        )
    project = parsed.get("project", settings["project"])
    if not project:
        raise parsed.refuse(
            "The required property [project] is not currently set.\nIt can be set on a per-command basis by re-running "
            "your command with the [--project] flag.\n\nYou may set it for your current workspace by running:\n\n  $ "
            "gcloud config set project VALUE\n\nor it can be set temporarily by the environment variable "
            "[CLOUDSDK_CORE_PROJECT]"
        )
    if project != settings["project"]:
        raise parsed.refuse(
            f"PERMISSION_DENIED: The caller does not have permission to access projects instance [{project}] (or it "
            f"may not exist): Permission 'resourcemanager.projects.get' denied on resource 'projects/{project}'."
        )
    if group.startswith("compute.tpus."):
        return tpus.command(parsed)
    if group.startswith("compute."):
        return compute.command(parsed, group.removeprefix("compute."))
    if group.startswith("container."):
        return container.command(parsed, group.removeprefix("container."))
    if group.startswith("storage."):
        return storage(parsed, group.removeprefix("storage."))
    if group == "projects.describe":
        print(show(parsed, {"projectId": project, "lifecycleState": "ACTIVE", "projectNumber": "1"}, ""))
        return 0
    if group.startswith("secrets."):
        return _secret(parsed, settings["secrets"], project)
    raise parsed.refuse("the stand-in does not know this command")


def _secret(parsed: Parsed, secrets: dict[str, str], project: str) -> int:
    name = parsed.get("secret") or parsed.name
    if name not in secrets:
        raise parsed.refuse(f"NOT_FOUND: Secret [projects/{project}/secrets/{name}] not found or has no versions.")
    print(secrets[name] if parsed.has("secret") else show(parsed, {"name": name}, "name"), end="")
    return 0


def storage(parsed: Parsed, verb: str) -> int:
    """`gcloud storage` and `gsutil` on buckets that are folders."""
    with world.locked() as state:
        buckets = state["settings"]["buckets"]
        denied = state["settings"]["denied"]

    def local(url: str) -> Path:
        if not url.startswith("gs://"):
            return Path(url)
        bucket, _, name = url.removeprefix("gs://").partition("/")
        if bucket not in buckets:
            raise parsed.refuse(f"gs://{bucket} not found: 404.")
        if "storage.objects.get" in denied:
            raise parsed.refuse(
                f"[someone@example.com] does not have permission to access b instance [{bucket}] (or it may not "
                "exist): someone@example.com does not have storage.objects.get access to the Google Cloud Storage "
                "object."
            )
        return Path(buckets[bucket]) / name

    if verb in ("cp", "rsync"):
        *sources, target = parsed.names
        for source in sources:
            _copy(parsed, local(source), local(target), verb == "rsync")
        return 0
    for url in parsed.names:
        path = local(url)
        bucket = url.split("/")[2]
        if not path.exists():
            raise parsed.refuse("One or more URLs matched no objects.")
        if verb == "cat":
            print(path.read_text(), end="")
        elif verb == "ls":
            inside = sorted(path.iterdir()) if path.is_dir() else [path]
            for one in inside:
                name = one.relative_to(buckets[bucket])
                print(f"gs://{bucket}/{name}" + ("/" if one.is_dir() else ""))
        elif verb == "rm":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            print(show(parsed, {"name": bucket, "location": "US"}, "name"))
    return 0


def _copy(parsed: Parsed, source: Path, target: Path, contents: bool) -> None:
    if not source.exists():
        raise parsed.refuse(f"The following URLs matched no objects or files:\n-{source}")
    if source.is_dir():
        if not parsed.has("recursive") and not contents:
            raise parsed.refuse(f'Omitting prefix "{source}/" because it is a container, and recursion is not enabled.')
        shutil.copytree(source, target if contents else target / source.name, dirs_exist_ok=True)
        return
    target = target / source.name if target.is_dir() else target
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def gsutil(arguments: list[str]) -> int:
    """The stand-in for `gsutil`: `cp`, `ls`, `cat`, `rm`, `rsync` with -r and -m."""
    world.record_call("gsutil", arguments)
    rest = [argument for argument in arguments if argument not in ("-m", "-q")]
    rest = ["--recursive" if argument in ("-r", "-R") else argument for argument in rest]
    command = f"storage.{rest[0] if rest else ''}"
    try:
        if command not in COMMANDS:
            raise Refusal(f'CommandException: Invalid command "{rest[0] if rest else ""}".')
        return storage(parse(command, rest[1:], COMMANDS[command]), rest[0])
    except Refusal as refusal:
        print(f"CommandException: {refusal}", file=sys.stderr)
        return 1

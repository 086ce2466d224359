"""What went wrong in a program of the cloud, in one sentence, from what it printed.

The patterns are those of messages that gcloud, kubectl and the APIs behind them printed in 2024 to 2026. A message that
is not known is passed on as it is.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from qwenvl_jax.runtime.errors import UserError


class CloudError(UserError):
    """A command of the cloud that failed; one sentence.

    Attributes:
      elsewhere: whether another zone may grant what this one refused.
      refused: whether the cloud is known to have made nothing.
      absent: whether what the command names does not exist.
      output: what the command has printed to stdout, if it was captured.
    """

    def __init__(self, text: str, *, elsewhere: bool = False, refused: bool = False, absent: bool = False):
        super().__init__(text)
        self.absent = absent
        self.elsewhere = elsewhere
        self.refused = refused
        self.output = ""


class _Kind(NamedTuple):
    """One kind of refusal: how it is recognised, what to do, whether another zone may help, what is not there."""

    pattern: re.Pattern[str]
    advice: str
    elsewhere: bool = False
    absent: bool = False


_KINDS = (
    _Kind(
        re.compile(r"do not currently have an active account|Reauthentication|invalid_grant"), "run `gcloud auth login`"
    ),
    _Kind(
        re.compile(r"context \S+ does not exist|context was not found"),
        "run `python -m launch gke setup`, which lets kubectl talk to the cluster",
    ),
    _Kind(re.compile(r"required property \[project\]"), "give --project, or run `gcloud config set project PROJECT`"),
    _Kind(
        re.compile(r"API \[\S+\] not enabled|has not been used in project|SERVICE_DISABLED"),
        "enable the API in the project and run the same command again",
    ),
    _Kind(
        re.compile(r"Quota '?\"?limit|Quota '|quota exceeded|Insufficient (regional )?quota", re.IGNORECASE),
        "ask for more quota, or choose another zone or --capacity",
        True,
    ),
    _Kind(
        re.compile(r"no more capacity|ZONE_RESOURCE_POOL_EXHAUSTED|not have enough resources|Insufficient reserved"),
        "try another zone, or wait with queued_resource",
        True,
    ),
    _Kind(
        re.compile(
            r"was not found in zone|does not exist in zone|not available in zone|Permission denied on 'locations/"
        ),
        "`python -m launch where --topology=..` lists the zones of a chip",
        True,
    ),
    _Kind(
        re.compile(r"ALREADY_EXISTS|already exists|AlreadyExists|code=409"),
        "it was left as it is; choose another --name, or delete it first",
    ),
    _Kind(
        re.compile(r"PERMISSION_DENIED|Permission '\S+' denied|Required \S+ permission|code=403|Forbidden"),
        "ask an owner of the project for this permission",
    ),
    _Kind(re.compile(r"[Rr]eservation.* not found|not found.*[Rr]eservation"), "check --reservation and the zone"),
    _Kind(
        re.compile(r"NOT_FOUND|not found|NotFound", re.IGNORECASE),
        "check --name, --zone and --project; `status` shows what exists",
        absent=True,
    ),
    _Kind(
        re.compile(r"unrecognized arguments|Invalid choice|unknown flag"),
        "update gcloud with `gcloud components update`",
    ),
)
_UNKNOWN = _Kind(re.compile(""), "see its message above")


def explain(program: str, code: int, printed: str) -> CloudError:
    """The error for a program that ended with `code` and printed this text to stderr."""
    reason = _reason(printed)
    kind = next((kind for kind in _KINDS if kind.pattern.search(reason) or kind.pattern.search(printed)), _UNKNOWN)
    says = f": {reason}" if reason else f" with exit code {code}"
    return CloudError(
        f"{program} failed{says}; {kind.advice}",
        elsewhere=kind.elsewhere,
        refused=kind is not _UNKNOWN,
        absent=kind.absent,
    )


def _reason(printed: str) -> str:
    """The sentence of the error in what a program printed, without its prefix and its hints."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [index for index, line in enumerate(lines) if line.lower().startswith(("error", "commandexception"))]
    if not errors:
        return lines[-1][:400] if lines else ""
    first = errors[-1]
    message = re.search(r'"message": "((?:[^"\\]|\\.)*)"', printed)
    if message:
        text = message[1].replace('\\"', '"')
    else:
        text = re.sub(r"^error:?\s*(\(\S+\))?\s*(from server\s*)?", "", lines[first], flags=re.IGNORECASE)
        if text.rstrip().endswith(("resource:", "request:", ":")) and first + 1 < len(lines):
            text = lines[first + 1].removeprefix("- ")
    text = re.sub(r"\s*\[EID: \w+\]|\s*This command is authenticated as.*$|ResponseError: code=\d+, message=", "", text)
    return text.strip().rstrip(".")[:400]

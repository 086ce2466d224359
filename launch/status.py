"""Sums up what the hosts or pods of a run say: how many are in which state, and which ones differ from most."""

from __future__ import annotations

import collections
import re

_STATES = "running|waiting|ended|lost|never started"
# A line of `launch.host status`: `NAME: STATE ..; restarts 2; code 42; last line of the log`.
_HOST = re.compile(rf"^([\w.-]+): ({_STATES})\b([^;\n]*)((?:; (?:restarts|code) \d+)*)", re.MULTILINE)
# A line of `kubectl get pods`: NAME READY STATUS ..
_POD = re.compile(r"^(\S+-slice-\d+-\d+(?:-\S+)?)\s+\d+/\d+\s+([A-Z]\w+)\s", re.MULTILINE)
_NAMED = 8  # names in one line at most


def summary(text: str) -> str:
    """One line about the hosts or pods in the output of `status`; empty if there are none.

    Hosts in the most frequent state are counted, the others are named.
    """
    states = {}
    for name, state, _, numbers in _HOST.findall(text):
        code = re.search(r"code (\d+)", numbers)
        states[name] = f"{state} with code {code[1]}" if code and state != "running" else state
    noun = "host"
    if not states:
        states = dict(_POD.findall(text))
        noun = "pod"
    if not states:
        return ""
    by_state = collections.defaultdict(list)
    for name, state in states.items():
        by_state[state].append(name)
    ordered = sorted(by_state.items(), key=lambda item: -len(item[1]))
    most, names = ordered[0]
    parts = [f"{len(names)} of {len(states)} {noun}{'s' if len(states) > 1 else ''} {most}"]
    for state, names in ordered[1:]:
        listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        parts.append(f"{len(names)} {state}: {listed}")
    return "; ".join(parts)

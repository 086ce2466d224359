"""What `status` says of many hosts, in one line."""

from __future__ import annotations

import sys

import pytest

from launch import execution
from launch.cloud_errors import CloudError
from launch.command import Command
from launch.status import summary


def test_hosts_in_another_state_than_most_are_named() -> None:
    lines = [f"w-{index}: running; restarts 1; step {index}: loss 2.5" for index in range(126)]
    lines[3] = "w-3: lost (the supervisor was killed, or the host was restarted); restarts 0; running on"
    lines[7] = "w-7: ended; restarts 2; code 2; error: the config is wrong"
    text = "ACTIVE\n" + "\n".join(lines)
    assert summary(text) == "124 of 126 hosts running; 1 lost: w-3; 1 ended with code 2: w-7"


def test_many_names_are_counted() -> None:
    lines = [f"w-{index}: {'running' if index < 60 else 'never started'}" for index in range(100)]
    says = summary("\n".join(lines))
    assert says.startswith("60 of 100 hosts running; 40 never started: w-60, ") and says.endswith(" and 32 more")


def test_pods() -> None:
    text = (
        "NAME                     READY   STATUS    RESTARTS   AGE   IP   NODE\n"
        "stage2-slice-0-0-x7k2p   1/1     Running   0   3m   10.0.0.1   gke-a\n"
        "stage2-slice-0-1-9dkqz   1/1     Running   0   3m   10.0.0.2   gke-b\n"
        "stage2-slice-1-0-lq8mm   0/1     Pending   0   3m   <none>     <none>\n"
    )
    assert summary(text) == "2 of 3 pods Running; 1 Pending: stage2-slice-1-0-lq8mm"
    assert summary("READY\nno hosts here: nothing\n") == ""


def test_output_of_a_command_that_fails_is_kept() -> None:
    """One host of two is off: the other's line is still read."""
    script = "print('w-0: running'); import sys; sys.exit('ERROR: worker 1 cannot be reached')"
    outputs: list[str] = []
    with pytest.raises(CloudError, match="worker 1 cannot be reached"):
        execution.run([Command((sys.executable, "-c", script), "Why.")], outputs=outputs)
    assert summary("\n".join(outputs)) == "1 of 1 host running"

"""One agent a machine and one a disk, whatever copies of its state there are; what held a name is free once it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid

import pytest

from mobility_agent.sole_agent import hold_disk, hold_machine
from replication.errors import Refused, SettingsError
from replication.identifiers import DiskId

HOLD = """
import sys, time
from mobility_agent.sole_agent import hold_machine
held = hold_machine(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_agent_of_the_machine_is_refused_and_told_who_runs() -> None:
    machine = str(uuid.uuid4())
    with hold_machine(machine):
        with pytest.raises(SettingsError, match=f"process {os.getpid()} of user {os.getuid()}") as refused:
            hold_machine(machine)
        assert refused.value.hint is not None
        assert "remove its state directory" in refused.value.hint
        hold_machine(str(uuid.uuid4())).close()
    hold_machine(machine).close()


def test_a_disk_is_held_apart_from_the_machine() -> None:
    disk = DiskId(str(uuid.uuid4()))
    with hold_disk(disk), hold_machine(disk), pytest.raises(Refused, match="is an agent that does") as refused:
        hold_disk(disk)
    assert refused.value.disk == disk
    hold_disk(disk).close()


def test_many_may_ask_while_nobody_answers() -> None:
    machine = str(uuid.uuid4())
    with hold_machine(machine):
        for _ in range(20):
            with pytest.raises(SettingsError, match="cannot run: "):
                hold_machine(machine)


def test_an_agent_that_is_killed_holds_nothing() -> None:
    machine = str(uuid.uuid4())
    with subprocess.Popen([sys.executable, "-c", HOLD, machine], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(SettingsError, match=f"process {process.pid} of user"):
            hold_machine(machine)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    hold_machine(machine).close()

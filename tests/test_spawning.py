"""How the tests start processes (tests/spawning.py): what a process has ended with is always heard."""

from __future__ import annotations

import os
import signal
import time

import pytest
import spawning


@pytest.mark.slow
def test_processes_that_end_in_one_moment_are_all_heard_of():
    for _ in range(3):
        ranks = [spawning.Spawned(["-c", f"import sys; sys.exit({status})"], os.environ) for status in (3, 4, 5, 6)]
        time.sleep(0.2)  # long enough that the four ends are heard at once
        assert [rank.wait(20) for rank in ranks] == [3, 4, 5, 6]


def test_a_signal_to_a_process_that_has_ended_goes_nowhere():
    process = spawning.Spawned(["-c", "pass"], os.environ)
    while os.path.exists(f"/proc/{process.pid}"):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(20) == 0

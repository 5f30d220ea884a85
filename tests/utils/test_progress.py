"""How far long work has come, on a terminal and in a log file."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios

import pytest

from hf_cxr.utils import progress
from hf_cxr.utils.progress import LINES, ProgressBar

WORK = """
from hf_cxr.utils.progress import ProgressBar
for _ in ProgressBar(range(15), desc="working", unit="steps", mininterval=0):
    pass
"""


def test_a_log_file_gets_ended_lines_with_what_is_done_and_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0)
    bar = ProgressBar(total=40, initial=10, desc="working", unit="steps")
    for step in range(30):
        bar.update()
        bar.set_postfix(loss=step, refresh=False)
    bar.close()
    told = capsys.readouterr().err
    assert "\r" not in told
    first, *middle, last = told.splitlines()
    assert first == "working: 10 of 40 steps, 00:00 so far, ? left"
    assert middle[-1] == "working: 39 of 40 steps, loss=27, 00:00 so far, 00:00 left"
    assert re.fullmatch(r"working: 40 of 40 steps, loss=28, .*", last)


@pytest.mark.parametrize(("seconds", "most"), [(0, LINES + 1), (30, 2)])
def test_a_log_file_gets_few_lines_of_much_work(capsys, monkeypatch, seconds, most):
    monkeypatch.setattr(progress, "SECONDS", seconds)
    for _ in ProgressBar(range(10_000)):
        pass
    assert 2 <= len(capsys.readouterr().err.splitlines()) <= most


def test_a_terminal_gets_one_bar_in_place():
    screen, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run([sys.executable, "-c", WORK], stderr=terminal, check=True, timeout=60)
    told = os.read(screen, 100_000).decode()
    assert told.count("\n") == 1, "at its end"
    assert told.count("\r") > 10
    assert "15/15" in told

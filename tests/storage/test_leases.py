"""Who trains a stage: one process at a time, whatever becomes of the others."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import signal
import struct
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from m3dist.storage import leases
from m3dist.storage.leases import Leases

SPAWN = multiprocessing.get_context("spawn")  # a fork of a process that Ray runs in breaks its connections


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT", 0.3)
    monkeypatch.setattr(leases, "EXPIRY", 2.0)


def shorten() -> None:
    """As `short`, in a process of its own."""
    leases.HEARTBEAT, leases.EXPIRY = 0.3, 2.0


def work(root: Path, log: Path) -> None:
    shorten()
    with Leases(root).hold("stage", done=lambda: log.exists() and "done" in log.read_text()) as mine:
        if mine:
            with log.open("a") as file:
                file.write("trained\n")
                file.flush()
                time.sleep(0.3)
                file.write("done\n")


def hold_forever(root: Path, names: list[str], sign: Path) -> None:
    shorten()
    mine = Leases(root)
    blocks = [mine.hold(name) for name in names]
    for block in blocks:
        block.__enter__()
    sign.touch()
    time.sleep(600)


def holder_of(root: Path, *names: str) -> BaseProcess:
    """A process that holds these leases."""
    sign = root.parent / "held"
    process = SPAWN.Process(target=hold_forever, args=(root, list(names), sign), daemon=True)
    process.start()
    while not sign.exists():
        assert process.is_alive()
        time.sleep(0.01)
    return process


class Waits:
    """Counts how often a lease is looked at in vain; gives up after some times."""

    def __init__(self, most: int):
        self.count, self.most = 0, most

    def __call__(self) -> None:
        self.count += 1
        if self.count > self.most:
            raise TimeoutError


def test_of_many_processes_one_does_the_work(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [SPAWN.Process(target=work, args=(tmp_path / "leases", log)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert log.read_text() == "trained\ndone\n"


def test_a_live_process_keeps_its_lease_beyond_the_expiry_and_a_killed_one_loses_it(tmp_path: Path) -> None:
    holder = holder_of(tmp_path / "leases", "stage")
    mine = Leases(tmp_path / "leases")
    with pytest.raises(TimeoutError), mine.hold("stage", waiting=Waits(8)):  # four seconds
        pass
    with mine.hold("stage", done=lambda: True, waiting=Waits(0)) as held:  # what is done needs no lease
        assert not held
    holder.kill()
    holder.join()
    with mine.hold("stage", waiting=Waits(40)) as held:
        assert held


def test_the_leases_of_a_killed_process_end_together(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d")
    holder = holder_of(tmp_path / "leases", *names)
    holder.kill()
    holder.join()
    mine, waits = Leases(tmp_path / "leases", names), Waits(40)
    for name in names:
        with mine.hold(name, waiting=waits):
            pass
    assert waits.count < 12  # one after another each would take four looks or more


def test_a_lease_that_was_given_back_is_there_at_once(tmp_path: Path) -> None:
    with Leases(tmp_path).hold("stage"):
        pass
    with Leases(tmp_path).hold("stage", waiting=Waits(0)) as held:
        assert held


def refuse_exchanges() -> None:
    """From here on renameat2 knows no flags, as on NFS: it fails with EINVAL (a seccomp filter)."""
    load_number, load_flags = (0x20, 0, 0, 0), (0x20, 0, 0, 16 + 4 * 8)
    is_renameat2, no_flags = (0x15, 0, 3, 316), (0x15, 1, 0, 0)
    refuse, allow = (0x06, 0, 0, 0x00050000 | 22), (0x06, 0, 0, 0x7FFF0000)
    steps = (load_number, is_renameat2, load_flags, no_flags, refuse, allow)
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    header = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
    assert libc.prctl(22, 2, header, 0, 0) == 0  # seccomp, by filter
    assert libc.syscall(316, -100, b"/tmp", -100, b"/tmp", 2) == -1
    assert ctypes.get_errno() == 22


def take_over(root: Path) -> None:
    shorten()
    refuse_exchanges()
    mine = Leases(root)
    os.kill(int((root / "pid").read_text()), signal.SIGKILL)
    with mine.hold("stage", waiting=Waits(40)) as held:
        assert held


@pytest.mark.skipif(platform.system() + platform.machine() != "Linuxx86_64", reason="the filter is for Linux on x86-64")
def test_a_lease_is_taken_over_on_file_systems_that_cannot_exchange_names(tmp_path: Path) -> None:
    holder = holder_of(tmp_path / "leases", "stage")
    (tmp_path / "leases" / "pid").write_text(str(holder.pid))
    process = SPAWN.Process(target=take_over, args=(tmp_path / "leases",))
    process.start()
    process.join(60)
    assert process.exitcode == 0

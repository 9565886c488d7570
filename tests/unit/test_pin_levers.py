"""Every outcome of a lever, with things made up; irqbalance by a server that speaks as it does."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.boards import A, B, Board, C, settings

from quietcore.agent.pin import actuate, host_levers
from quietcore.agent.pin.host_levers import BalancerBan, Cpuset
from quietcore.agent.pin.journal import Change, Journal
from quietcore.agent.pin.levers import GoneError, Outcome, RefusedError, kernel_answers, put, restore
from quietcore.agent.pin.plan import Setting
from quietcore.agent.pin.restore import put_back, restore_journal
from quietcore.agent.pin.things import Balancer, CpusetDir, IrqLine, Thread, Value, thing_of
from quietcore.agent.pin.thread_levers import Affinity
from quietcore.probes import proc


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pin.journal"


def outcomes(report: actuate.Report) -> dict[object, Outcome]:
    return {step.thing: step.outcome for step in report.steps}


def test_applied_and_undone_the_latest_first(board: Board, path: Path) -> None:
    with Journal.open(path) as journal:
        assert set(outcomes(actuate.apply(journal, settings(a=11, b=21), "t")).values()) == {Outcome.SET}
        assert board.values == {A: 11, B: 21, C: 30}
        board.writes.clear()
        assert set(outcomes(actuate.undo(journal, "t")).values()) == {Outcome.RESTORED}
        assert board.writes == [(2, 20), (1, 10)]
        assert not journal.entries
    assert path.read_bytes() == b""


def test_the_old_value_is_on_disk_when_the_first_is_set(board: Board, path: Path) -> None:
    seen = []
    write = board.write

    def watch(thing: IrqLine, value: Value) -> None:
        seen.append(path.read_text())
        write(thing, value)

    board.write = watch  # type: ignore[method-assign]
    with Journal.open(path) as journal:
        actuate.apply(journal, settings(a=11, b=21), "t")
    assert '"old": 10' in seen[0]
    assert '"old": 20' in seen[0]


def test_what_cannot_be_set_is_told_and_leaves_nothing_behind(board: Board, path: Path) -> None:
    board.locked.add(A)
    del board.values[B]
    board.bent[31] = 32  # the kernel makes something else of it
    with Journal.open(path) as journal:
        report = actuate.apply(journal, settings(a=11, b=21, c=31), "t")
        assert outcomes(report) == {A: Outcome.REFUSED, B: Outcome.GONE, C: Outcome.REFUSED}
        assert "set to 31, it reads 32" in str(report.of(Outcome.REFUSED)[1])
        assert not report.changed
        assert not journal.entries
    assert board.values == {A: 10, C: 30}
    assert path.read_bytes() == b""


def test_what_is_so_already_is_left(board: Board, path: Path) -> None:
    with Journal.open(path) as journal:
        assert outcomes(actuate.apply(journal, settings(a=10), "t")) == {A: Outcome.ALREADY}
        assert not journal.entries
        assert path.read_bytes() == b""


def test_set_twice_the_first_old_value_counts(board: Board, path: Path) -> None:
    with Journal.open(path) as journal:
        actuate.apply(journal, settings(a=11), "t")
        actuate.apply(journal, settings(a=12), "t")
        actuate.undo(journal, "t")
    assert board.values[A] == 10


def test_values_that_others_changed_are_left_alone(board: Board, path: Path) -> None:
    with Journal.open(path) as journal:
        actuate.apply(journal, settings(a=11, b=21, c=31), "t")
        board.values[A] = 99
        board.values[B] = 20  # somebody put it back
        report = actuate.undo(journal, "t")
        assert outcomes(report) == {A: Outcome.CONFLICT, B: Outcome.ALREADY, C: Outcome.RESTORED}
        assert board.values == {A: 99, B: 20, C: 30}
        assert "99 now, not what we set (11): left alone" in str(report.conflicts[0])
        assert not journal.entries  # told once


def test_what_is_refused_stays_in_the_journal(board: Board, path: Path) -> None:
    with Journal.open(path) as journal:
        actuate.apply(journal, settings(a=11, b=21), "t")
        board.locked.add(A)
        assert outcomes(actuate.undo(journal, "t"))[A] is Outcome.REFUSED
        assert [e.thing for e in journal.of(None)] == [A]
    (event,) = restore_journal(path)
    assert "0 settings put back; 1 refused, kept in the journal: IRQ 1 (x)" in event.text
    board.locked.clear()
    assert "1 settings put back" in restore_journal(path)[0].text
    assert board.values[A] == 10
    assert restore_journal(path) == []


def test_a_target_keeps_its_hands_off_what_another_holds(board: Board, path: Path) -> None:
    with Journal.open(path) as journal:
        actuate.apply(journal, settings(a=11), "one")
        assert outcomes(actuate.apply(journal, settings(a=12, b=21), "two"))[A] is Outcome.HELD
        actuate.undo(journal, "two")
        assert board.values == {A: 11, B: 20, C: 30}


def killed_after(journal: Journal, *changes: Change) -> None:
    journal.record(changes, "t")


@pytest.mark.parametrize("reached", [0, 1, 2])
def test_killed_between_the_journal_and_the_last_change(board: Board, path: Path, reached: int) -> None:
    with Journal.open(path) as journal:
        killed_after(journal, Change("board", A, 10, 11), Change("board", B, 20, 21))
        for thing, value in ((A, 11), (B, 21))[:reached]:
            board.values[thing] = value
    events = restore_journal(path)
    assert board.values == {A: 10, B: 20, C: 30}
    assert [event.kind for event in events] == ["restore"]
    assert path.read_bytes() == b""


def test_killed_in_the_middle_of_an_undo(board: Board, path: Path) -> None:
    with Journal.open(path) as journal:
        actuate.apply(journal, settings(a=11, b=21), "t")
    board.values[B] = 20
    restore_journal(path)
    assert board.values == {A: 10, B: 20, C: 30}


def test_what_was_applied_to_stay_may_be_left(board: Board, path: Path) -> None:
    with Journal.open(path) as journal:
        actuate.apply(journal, settings(a=11), "t")
        journal.keep()
    assert restore_journal(path, leave_applied=True) == []
    assert board.values[A] == 11
    restore_journal(path)
    assert board.values[A] == 10


def test_a_damaged_journal_is_kept_for_people(board: Board, path: Path) -> None:
    with Journal.open(path) as journal:
        actuate.apply(journal, settings(a=11), "t")
    path.write_text("nonsense\n" + path.read_text())
    damaged, restored = restore_journal(path)
    assert (damaged.kind, restored.kind) == ("conflict", "restore")
    assert (path.parent / "pin.journal.damaged").read_text() == "nonsense\n"
    assert board.values[A] == 10
    assert path.read_bytes() == b""


def test_a_stale_journal_says_so(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.contents.stale = True
        (event,) = put_back(journal)
    assert "before the last boot" in event.text


def test_no_journal_nothing_to_do(path: Path) -> None:
    assert restore_journal(path) == []
    assert not path.exists()


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ESRCH, GoneError),
        (errno.ENOENT, GoneError),
        (errno.ENODEV, GoneError),
        (errno.EPERM, RefusedError),
        (errno.EIO, RefusedError),
        (errno.EINVAL, RefusedError),
    ],
)
def test_what_the_kernel_answers(number: int, error: type[Exception]) -> None:
    with pytest.raises(error), kernel_answers():
        raise OSError(number, os.strerror(number))


def test_put_and_restore_by_themselves(board: Board) -> None:
    put(board, A, 5)
    assert restore(board, A, 10, [5]) == (Outcome.RESTORED, "")
    assert restore(board, A, 10, [5]) == (Outcome.ALREADY, "")
    board.values[A] = 6
    assert restore(board, A, 10, [5])[0] is Outcome.CONFLICT
    del board.values[A]
    assert restore(board, A, 10, [5])[0] is Outcome.GONE


def test_things_from_json() -> None:
    assert thing_of(Thread, [1, 2, 3, 4]) == Thread(1, 2, 3, 4)
    assert thing_of(CpusetDir, ["/x", 5]) == CpusetDir("/x", 5)
    for wrong in ([1, 2, 3], [1, 2, 3, True], [1, 2, 3, "4"], "1234", None):
        with pytest.raises(ValueError, match="is no Thread"):
            thing_of(Thread, wrong)


def test_unbound_threads_are_alike_wherever_their_cpuset_goes() -> None:
    lever = Affinity()
    assert lever.same("0-3+", "0-7+")
    assert lever.same("0-3", "3,0-2+")
    assert not lever.same("0-3", "0-7+")


def test_a_journal_leads_to_no_file_that_is_no_cgroups(tmp_path: Path) -> None:
    (tmp_path / "cpuset.cpus").write_text("0\n")
    thing = CpusetDir(str(tmp_path), tmp_path.stat().st_ino)
    with pytest.raises(GoneError):
        Cpuset().write(thing, "1")
    assert (tmp_path / "cpuset.cpus").read_text() == "0\n"


def make_cgroup(top: Path, **files: str) -> CpusetDir:
    for name, text in {"cgroup.procs": "", **files}.items():
        (top / name.replace("__", ".")).write_text(text)
    return CpusetDir(str(top), top.stat().st_ino)


def test_a_v2_cpuset_that_the_parent_does_not_grant(tmp_path: Path) -> None:
    thing = make_cgroup(tmp_path, **{"cpuset.cpus": "\n", "cpuset.cpus.effective": "0-1\n"})
    lever = Cpuset()
    assert lever.read(thing) == ""
    with pytest.raises(RefusedError, match="allow only 0-1"):
        lever.write(thing, "2")
    assert lever.read(thing) == ""


def test_another_cgroup_of_the_same_name(tmp_path: Path) -> None:
    thing = make_cgroup(tmp_path, **{"cpuset.cpus": "0\n"})
    with pytest.raises(GoneError):
        Cpuset().read(thing._replace(inode=thing.inode + 1))


class Irqbalance:
    """Answers as irqbalance 1.9 does: one command a connection, root only."""

    def __init__(self, path: Path) -> None:
        self.banned: list[int] = []
        self.heard: list[str] = []
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._server.listen(1)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            link, _ = self._server.accept()
            with link:
                data, ancillary, *_ = link.recvmsg(16384, socket.CMSG_SPACE(12))
                command = data.decode()
                if command == "stop":
                    return
                assert ancillary
                self.heard.append(command)
                if command.startswith("settings ban irqs "):
                    words = command.removeprefix("settings ban irqs ").split()
                    self.banned = [] if words == ["NONE"] else [int(word) for word in words]
                elif command.startswith("setup"):
                    irqs = "".join(f"IRQ {n} LOAD 0 DIFF 0 CLASS 0 " for n in self.banned)
                    link.sendall(f"SLEEP 10 {irqs}BANNED 00000000".encode())

    def stop(self) -> None:
        address = self._server.getsockname()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.connect(address)
            link.sendall(b"stop")
        self._thread.join()
        self._server.close()


@pytest.fixture
def irqbalance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Irqbalance]:
    monkeypatch.setattr(host_levers, "SOCKETS", tmp_path)
    server = Irqbalance(tmp_path / f"irqbalance{os.getpid()}.sock")
    yield server
    server.stop()


def myself() -> Balancer:
    stat = proc.read_stat(os.getpid())
    assert stat is not None
    return Balancer(stat.pid, stat.started)


def test_irqbalance_is_told_and_told_back(irqbalance: Irqbalance, path: Path) -> None:
    irqbalance.banned = [5]
    with Journal.open(path) as journal:
        report = actuate.apply(journal, [Setting("irqbalance", myself(), "5 36 40")], "t")
        assert report.changed
        assert irqbalance.banned == [5, 36, 40]
    restore_journal(path)
    assert irqbalance.banned == [5]


def test_irqbalance_with_nothing_banned(irqbalance: Irqbalance) -> None:
    lever = BalancerBan()
    assert lever.read(myself()) == ""
    put(lever, myself(), "36")
    assert restore(lever, myself(), "", ["36"]) == (Outcome.RESTORED, "")
    assert irqbalance.banned == []
    assert "settings ban irqs NONE" in irqbalance.heard


def test_another_irqbalance_knows_of_no_ban(irqbalance: Irqbalance) -> None:
    other = myself()._replace(started=1)
    assert restore(BalancerBan(), other, "", ["36"])[0] is Outcome.GONE
    assert irqbalance.heard == []


def test_irqbalance_without_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_levers, "SOCKETS", tmp_path)
    with pytest.raises(RefusedError, match="irqbalance cannot be asked: no socket"):
        BalancerBan().read(myself())

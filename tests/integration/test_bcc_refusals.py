"""What the bcc backend says when it cannot start, and that bcc's own words stay off the terminal."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path

import pytest

from quietcore.probes import bcc_toolchain as toolchain
from quietcore.probes.bcc import BccBackend
from quietcore.probes.errors import BackendUnavailableError

pytestmark = [pytest.mark.bcc, pytest.mark.root]


def refusal(step: str) -> BackendUnavailableError:
    with pytest.raises(BackendUnavailableError) as caught:
        BccBackend().start()
    assert (caught.value.backend, caught.value.step) == ("bcc", step)
    return caught.value


def test_another_project_named_bcc_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "bcc", types.ModuleType("bcc"))
    if (toolchain.DISTRIBUTION / "bcc").exists():
        assert hasattr(toolchain.import_bcc(), "BPF")
    monkeypatch.setattr(toolchain, "DISTRIBUTION", tmp_path)
    assert refusal("library").remedy == "apt-get install python3-bpfcc"


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "TRACEFS", (tmp_path,))
        assert refusal("tracefs").remedy == f"mount -t tracefs tracefs {tmp_path}"
    with monkeypatch.context() as patch:
        for name in ("MODULES", "KHEADERS"):
            patch.setattr(toolchain, name, tmp_path / "none")
        patch.setattr(toolchain, "HEADERS", ())
        assert "linux-headers" in refusal("headers").remedy


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the BPF sources, to be spoilt."""
    shutil.copytree(toolchain.SOURCES, tmp_path / "bpf")
    monkeypatch.setattr(toolchain, "SOURCES", tmp_path / "bpf")
    return tmp_path / "bpf"


def spoil(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_what_the_compiler_says_is_kept_for_the_user(
    sources: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(sources / "account.h", "q->switched = now;", "q->switched = nowhere;")
    assert "use of undeclared identifier 'nowhere'" in refusal("compile").detail
    assert capfd.readouterr() == ("", "")


def test_what_the_verifier_says_is_kept_for_the_user(
    sources: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(sources / "account.h", "if (!q)\n\t\treturn 0;\n\tcharge", "charge")
    error = refusal("load")
    assert "tp_sched_switch" in error.cause
    assert "map_value_or_null" in error.detail
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "call",
    [
        "map_lookup(q->map, &cpu)",  # not a name
        "map_lookup(unheard_of, &cpu)",
        "map_push(cpu_queues, &cpu)",
        "map_lookup (cpu_queues, &cpu)",
    ],
)
def test_a_map_call_that_cannot_be_rewritten_is_refused(sources: Path, call: str) -> None:
    spoil(sources / "account.h", "map_lookup(cpu_queues, &cpu)", call)
    refusal("source")

"""The default backend where the kernel refuses the CUDA programs, on objects made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quietcore.probes import core as module
from quietcore.probes.backend import Probe
from quietcore.probes.core import CoreBackend
from quietcore.probes.errors import BackendUnavailableError

PROBE = Probe(0, 1, 0, return_safe=True)


class RefusedObject:
    """Opens, and does not load."""

    made: list[RefusedObject]

    def __init__(self, _library: object, path: Path, _shared: object) -> None:
        self.path, self.open, self.maps = path, True, dict[str, Any]()
        self.made.append(self)

    def set_multi(self, names: set[str]) -> None: ...

    def load(self) -> None:
        raise BackendUnavailableError(
            "libbpf", "load", "cuda.bpf.o: Invalid argument", "", "the verifier's log"
        )

    def close(self) -> None:
        self.open = False


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> CoreBackend:
    monkeypatch.setattr(RefusedObject, "made", [], raising=False)
    monkeypatch.setattr(module, "BpfObject", RefusedObject)
    made = CoreBackend()
    made.library = None  # type: ignore[assignment]
    return made


@pytest.mark.parametrize(
    ("kernel", "words"),
    [((5, 10), "need kernel 5.15"), ((6, 18), "Invalid argument")],
)
def test_a_refusal_is_remembered(
    backend: CoreBackend, monkeypatch: pytest.MonkeyPatch, kernel: tuple[int, int], words: str
) -> None:
    monkeypatch.setattr(module, "kernel_version", lambda: kernel)
    for _ in range(2):
        with pytest.raises(BackendUnavailableError, match=words) as caught:
            backend.attach_cuda(7, "/lib/libcuda.so.1", [PROBE])
        assert caught.value.step == "load"
        assert caught.value.detail == "the verifier's log"
    (tried,) = RefusedObject.made
    assert not tried.open
    assert backend.programs() == []
    backend.close()

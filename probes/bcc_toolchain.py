"""What bcc needs before it can compile: its Python module, kernel headers, our source, a quiet stderr."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from quietcore.probes import layout
from quietcore.probes.backend import CALIBRATION_ID
from quietcore.probes.cuda_libs import API_CLASSES, API_SYMBOLS
from quietcore.probes.errors import BackendUnavailableError

SOURCES = Path(__file__).parent / "bpf"
DISTRIBUTION = Path("/usr/lib/python3/dist-packages")
TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
MODULES = Path("/lib/modules")
HEADERS = ("/usr/src/linux-headers-*", "/usr/src/kernels/*", "/lib/modules/*/build")
KHEADERS = Path("/sys/kernel/kheaders.tar.xz")
_GENERATED = "include/generated/autoconf.h"

_INCLUDE = re.compile(r'^#include "(\w+\.h)"$', re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DECLARED = re.compile(r"^BPF_(?:HASH|ARRAY|PERCPU_ARRAY)\((\w+),", re.MULTILINE)
_MAP_CALL = re.compile(r"\bmap_(lookup|insert|update|delete)\((\w+),\s*")
_ANY_MAP_CALL = re.compile(r"\bmap_\w+\s*\([^()]*")
_STATE_LETTER = re.compile(r'\{ *(0x[0-9a-f]+|\d+), *"(\w)" *\}')


def unavailable(step: str, cause: str, remedy: str = "", detail: str = "") -> BackendUnavailableError:
    """The error of this backend."""
    return BackendUnavailableError("bcc", step, cause, remedy, detail)


def import_bcc() -> Any:
    """The distribution's module, as PyPI has another project of that name.

    Raises BackendUnavailableError.
    """
    reasons = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its old versions have invalid escape sequences
        try:
            module = importlib.import_module("bcc")
            if hasattr(module, "BPF"):
                return module
            reasons.append(f"{getattr(module, '__file__', None) or 'bcc'} is another project of that name")
        except (ImportError, OSError, AttributeError) as e:  # OSError: libbcc.so is missing
            reasons.append(str(e))
        # beside the wrong one, under a name of our own
        start = DISTRIBUTION / "bcc" / "__init__.py"
        if start.exists():
            try:
                return _import_as("quietcore_bcc", start)
            except (ImportError, OSError, AttributeError) as e:
                reasons.append(str(e))
    raise unavailable("library", "; ".join(reasons), "apt-get install python3-bpfcc")


def _import_as(name: str, start: Path) -> Any:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, start, submodule_search_locations=[str(start.parent)])
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {start}")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "BPF"):
            raise ImportError(f"{start} has no BPF")
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def kernel_headers() -> Iterator[None]:
    """Lets bcc find headers: those of the running kernel, else any installed ones.

    Only tracepoint arguments are read, so headers of another kernel do no harm. Raises
    BackendUnavailableError.
    """
    release = platform.release()
    own = MODULES / release
    found_by_bcc = (
        "BCC_KERNEL_SOURCE" in os.environ
        or any((own / name / _GENERATED).exists() for name in ("build", "source"))
        or KHEADERS.exists()
        or any(own.glob("kernel/kernel/kheaders.ko*"))
    )
    if found_by_bcc:
        yield
        return
    trees = _installed_headers()
    if not trees:
        raise unavailable(
            "headers", f"no headers of kernel {release}", "apt-get install linux-headers-$(uname -r)"
        )
    with tempfile.TemporaryDirectory(prefix="quietcore-headers-") as folder:
        _merge(Path(folder), trees)
        os.environ["BCC_KERNEL_SOURCE"] = folder
        try:
            yield
        finally:
            del os.environ["BCC_KERNEL_SOURCE"]


def _installed_headers() -> list[Path]:
    """The newest installed tree, with the one that it builds on: Debian splits them."""
    candidates = {
        path.resolve()
        for pattern in HEADERS
        for path in Path("/").glob(pattern.lstrip("/"))
        if (path / _GENERATED).exists()
    }
    if not candidates:
        return []
    newest = max(candidates, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    with contextlib.suppress(OSError):
        base = re.match(r"include (/\S+)/Makefile", (newest / "Makefile").read_text("utf-8", "replace"))
        if base and Path(base[1]).is_dir():
            return [newest, Path(base[1])]
    return [newest]


def _merge(into: Path, trees: Sequence[Path]) -> None:
    """Fills a folder with links, as if the trees lay over one another, the first on top."""
    found: dict[str, list[Path]] = {}
    for tree in trees:
        for path in tree.iterdir():
            found.setdefault(path.name, []).append(path)
    for name, paths in found.items():
        folders = [path for path in paths if path.is_dir()]
        if len(folders) > 1 and not paths[0].is_symlink():
            (into / name).mkdir()
            _merge(into / name, folders)
        else:
            (into / name).symlink_to(paths[0])


def event_folder() -> Path:
    """Where tracefs lists its events. Raises BackendUnavailableError."""
    for mounted in TRACEFS:
        with contextlib.suppress(PermissionError):
            if (mounted / "events/sched/sched_switch").exists():
                return mounted / "events"
    if os.geteuid() != 0:
        raise unavailable("tracefs", f"{TRACEFS[0]} cannot be read", "run as root")
    raise unavailable("tracefs", "it is not mounted", f"mount -t tracefs tracefs {TRACEFS[0]}")


def state_flags(events: Path) -> list[str]:
    """What the values of prev_state mean in this kernel's sched_switch. Raises BackendUnavailableError."""
    try:
        text = (events / "sched/sched_switch/format").read_text("utf-8")
    except OSError as e:
        raise unavailable("tracefs", f"sched_switch/format: {e.strerror}", "run as root") from e
    letters = {letter: int(value, 0) for value, letter in _STATE_LETTER.findall(text)}
    if not {"S", "D", "X", "Z"} <= letters.keys():
        raise unavailable("tracefs", "the format of sched_switch is not known", detail=text)
    values = {
        "PREV_ANY": sum(letters.values()),
        "PREV_BLOCKED": letters["D"],
        "PREV_DEAD": letters["X"] | letters["Z"],
    }
    return [f"-D{name}={value:#x}" for name, value in values.items()]


def vectors(events: Path) -> list[str]:
    """The local vectors of :data:`layout.VECTORS` that have tracepoints here: x86 has them all."""
    return [name for name in layout.VECTORS if (events / f"irq_vectors/{name}_entry").exists()]


def source_text(local_vectors: Sequence[str]) -> str:
    """The module's text: our headers in place, map calls in bcc's words. Raises BackendUnavailableError."""
    text = (SOURCES / "bcc.c").read_text("utf-8")
    text = _INCLUDE.sub(lambda match: (SOURCES / match[1]).read_text("utf-8"), text)
    text = _COMMENT.sub(" ", text)
    declared = declared_maps(text)

    def in_bccs_words(match: re.Match[str]) -> str:
        action, name = match.groups()
        if name not in declared:
            raise unavailable("source", f"bpf/bcc.c declares no map {name}", "reinstall quietcore")
        return f"{name}.{action}("

    text = _MAP_CALL.sub(in_bccs_words, text)
    left = _ANY_MAP_CALL.search(text)
    if left or _INCLUDE.search(text):
        what = left[0] if left else "a nested #include"
        raise unavailable("source", f"cannot put {what} into bcc's words", "reinstall quietcore")
    lines = []
    for name in local_vectors:
        number = layout.VECTORS.index(name)
        lines += [f"VECTOR_ENTRY({name}, {number})", f"VECTOR_EXIT({name}, {number})"]
    for api_id, api_class in api_classes().items():
        lines.append(f"CUDA_ENTRY({api_id}, {api_id | api_class << 8:#x})")
    return text + "\n" + "\n".join(lines) + "\n"


def api_classes() -> dict[int, int]:
    """Numbers of class by api id: all that have an entry program, which are loaded when they are attached."""
    classes = {api.api_id: API_CLASSES.index(api.api_class) for api in API_SYMBOLS.values()}
    return classes | {CALIBRATION_ID: API_CLASSES.index("launch")}


def declared_maps(text: str) -> set[str]:
    """Names of the maps in the module's text."""
    return set(_DECLARED.findall(text))


class QuietStderr:
    """Keeps what libbcc writes to file descriptor 2 from the terminal. ``text`` is what was written.

    After success it is passed on: bcc's warnings are switched off, so it is someone else's.
    """

    text = ""
    _kept: IO[bytes] | None = None

    def __enter__(self) -> QuietStderr:
        if sys.stderr is not None:
            sys.stderr.flush()
        try:
            self._terminal = os.dup(2)
        except OSError:  # a daemon may have closed it
            return self
        self._kept = tempfile.TemporaryFile()
        os.dup2(self._kept.fileno(), 2)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._kept is None:
            return
        os.dup2(self._terminal, 2)
        os.close(self._terminal)
        with self._kept:
            self._kept.seek(0)
            written = self._kept.read()
        self.text = written.decode(errors="replace").strip()
        if kind is None and written:
            os.write(2, written)

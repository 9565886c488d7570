"""Builds the package's native files in place: a hatchling build hook, and a script.

`python probes/_compile.py` and every build of a wheel (editable ones too) fill two folders that git ignores:

    probes/_built/NAME.bpf.o       one object per probes/bpf/NAME.bpf.c, for the builder's architecture, as
                                   uprobes read the stack pointer
    probes/_built/lib/             copies of libbpf, libelf and libz for hosts without libbpf 1.0 or newer
    probes/_built/libselftest.so   what doctor fires its uprobes on
    agent/_built/                  the demo's launcher, fake CUDA libraries and noise maker

A target newer than its inputs is left alone. `QUIETCORE_SKIP_BPF=1` builds a pure-Python wheel.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

SKIP_VARIABLE = "QUIETCORE_SKIP_BPF"
MACHINE = platform.machine()
TARGET_ARCH = {"x86_64": "x86", "aarch64": "arm64"}.get(MACHINE, MACHINE)
MULTIARCH = f"{MACHINE}-linux-gnu"

BPF_FLAGS = ("-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror")

LIBRARY_FOLDERS = (f"/usr/lib/{MULTIARCH}", f"/lib/{MULTIARCH}", "/usr/lib64", "/lib64", "/usr/lib", "/lib")
# soname, licence, Debian packages that may hold it (for the copyright text)
LIBRARIES = (
    ("libbpf.so.1", "LGPL-2.1-only OR BSD-2-Clause", ("libbpf1",)),
    ("libelf.so.1", "GPL-2.0-or-later OR LGPL-3.0-or-later", ("libelf1", "libelf1t64")),
    ("libz.so.1", "Zlib", ("zlib1g",)),
)
DEMO_FILES = ("launcher", "libcuda.so.1", "libcudart.so.12", "thief")
SELFTEST_FILES = ("libselftest.so",)

Say = Callable[[str], None]


class BuildError(Exception):
    """A build step that could not be done; the text names the remedy."""


def _is_fresh(target: Path, inputs: Iterable[Path]) -> bool:
    if not target.exists():
        return False
    made = target.stat().st_mtime_ns
    return all(source.stat().st_mtime_ns <= made for source in inputs)


def _find_tool(variable: str, name: str, package: str) -> str:
    found = shutil.which(os.environ.get(variable, name))
    if found is None:
        raise BuildError(
            f"{name} not found: apt-get install {package} ({SKIP_VARIABLE}=1 builds without BPF)"
        )
    return found


def _run(command: Sequence[str], root: Path) -> None:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}".rstrip())


def _replace_by_copy(source: Path, target: Path) -> None:
    """Copies so that a program that has the old file mapped keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    half_done = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, half_done)
    shutil.copymode(source, half_done)
    half_done.replace(target)


def compile_bpf(root: Path, say: Say) -> None:
    """Compiles each probes/bpf/*.bpf.c whose object is older than it, a header or this file."""
    folder = root / "probes" / "bpf"
    built = root / "probes" / "_built"
    sources = sorted(folder.glob("*.bpf.c"))
    wanted = {built / f"{source.name.removesuffix('.c')}.o" for source in sources}
    for orphan in set(built.glob("*.bpf.o")) - wanted:
        orphan.unlink()
    shared = [*folder.glob("*.h"), Path(__file__).resolve()]
    for source in sources:
        target = built / f"{source.name.removesuffix('.c')}.o"
        if not _is_fresh(target, [source, *shared]):
            say(f"BPF {target.relative_to(root)}")
            _compile_one(source, target, root)


def _compile_one(source: Path, target: Path, root: Path) -> None:
    clang = _find_tool("CLANG", "clang", "clang")
    strip = _find_tool("LLVM_STRIP", "llvm-strip", "llvm")
    include_folders = (Path("/usr/include"), Path("/usr/local/include"))
    if not any((folder / "bpf/bpf_helpers.h").exists() for folder in include_folders):
        raise BuildError("bpf/bpf_helpers.h not found: apt-get install libbpf-dev")
    target.parent.mkdir(parents=True, exist_ok=True)
    half_done = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        _run(
            [
                clang,
                *BPF_FLAGS,
                f"-D__TARGET_ARCH_{TARGET_ARCH}",
                "-Iprobes/bpf",
                f"-I/usr/include/{MULTIARCH}",
                f"-ffile-prefix-map={root}=.",
                *("-c", str(source.relative_to(root)), "-o", str(half_done)),
            ],
            root,
        )
        _run([strip, "-g", str(half_done)], root)
        half_done.replace(target)
    finally:
        half_done.unlink(missing_ok=True)


def copy_libraries(root: Path, say: Say) -> None:
    """Copies the system's libbpf 1.x and what it needs, each under its soname, with their licences."""
    folder = root / "probes" / "_built" / "lib"
    sources: list[tuple[Path, Path]] = []
    for soname, _, _ in LIBRARIES:
        places = (Path(place, soname) for place in LIBRARY_FOLDERS)
        source = next((place.resolve() for place in places if place.exists()), None)
        if source is None:
            say(f"note: no {soname} on this system, so the build carries no copy of libbpf")
            shutil.rmtree(folder, ignore_errors=True)
            return
        sources.append((source, folder / soname))
    note = folder / "LICENSES"
    this_file = Path(__file__).resolve()
    if all(_is_fresh(target, [source]) for source, target in sources) and _is_fresh(note, [this_file]):
        return
    say(f"LIB {folder.relative_to(root)}")
    for source, target in sources:
        _replace_by_copy(source, target)
    note.write_text(_licence_note([source for source, _ in sources]), encoding="utf-8")


def _licence_note(sources: Sequence[Path]) -> str:
    parts = [
        "The libraries in this folder are unmodified copies from the distribution on which this package was\n"
        "built; any of them may be replaced by another build of the same soname. Their sources are those of\n"
        "the distribution's packages. Licences:\n\n"
        + "".join(
            f"  {soname}  ({source.name})  {licence}\n"
            for (soname, licence, _), source in zip(LIBRARIES, sources, strict=True)
        )
    ]
    for soname, _, packages in LIBRARIES:
        for package in packages:
            text = Path("/usr/share/doc", package, "copyright")
            if text.exists():
                title = f"{soname}: copyright file of {package}"
                parts.append(f"\n{'=' * 100}\n{title}\n\n{text.read_text('utf-8')}")
    return "".join(parts)


def build_doubles(root: Path, say: Say) -> None:
    """Builds the demo's and doctor's stand-ins from tests/doubles and puts them into the package."""
    source = root / "tests" / "doubles"
    if not (source / "Makefile").exists():
        say("note: no tests/doubles/Makefile here, so the build carries no demo")
        return
    make = _find_tool("MAKE", "make", "make")
    _find_tool("CC", "cc", "gcc")
    out = root / "build" / "doubles"
    out.mkdir(parents=True, exist_ok=True)
    _run([make, "-s", "-C", str(source), f"OUT={out}"], root)
    places = ((DEMO_FILES, root / "agent" / "_built"), (SELFTEST_FILES, root / "probes" / "_built"))
    for names, folder in places:
        for name in names:
            if not (out / name).exists():
                raise BuildError(f"tests/doubles/Makefile made no {name} in OUT")
            if not _is_fresh(folder / name, [out / name]):
                say(f"BIN {(folder / name).relative_to(root)}")
                _replace_by_copy(out / name, folder / name)


def build_all(root: Path, say: Say) -> bool:
    """Brings every native file up to date; False when the environment says to do without."""
    if os.environ.get(SKIP_VARIABLE) == "1":
        return False
    compile_bpf(root, say)
    copy_libraries(root, say)
    build_doubles(root, say)
    return True


def get_build_hook() -> type[Any]:
    """Hatchling calls this for the hook's class; imported late, so that the script needs no hatchling."""
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class NativeFilesHook(BuildHookInterface[Any]):
        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            try:
                native = build_all(Path(self.root).resolve(), self.app.display_info)
            except BuildError as error:
                self.app.abort(f"quietcore: {error}")
                return
            if not native and version != "editable":
                # What an earlier build left in the tree would get into this wheel.
                for room in ("agent", "probes"):
                    shutil.rmtree(Path(self.root, room, "_built"), ignore_errors=True)
            if native:
                platform_tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
                build_data["pure_python"] = False
                build_data["tag"] = f"py3-none-{platform_tag}"

    return NativeFilesHook


def main() -> int:
    """Builds in place and says what it made."""
    try:
        build_all(ROOT, lambda line: print(f"  {line}", flush=True))
    except BuildError as error:
        print(f"quietcore: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

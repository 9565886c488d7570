"""The offsets of CUDA functions, on libraries compiled here."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import random
import struct
import subprocess
from pathlib import Path

import pytest
from tests.unit.cuda_programs import DRIVER, RUNTIME, Build, library_at, loading

from quietcore.probes import elf
from quietcore.probes.cuda_libs import (
    LibraryAccessError,
    LibraryKind,
    NoSymbolsError,
    find_libraries,
    probe_sites,
)
from quietcore.probes.errors import MeasureError


def symbol_addresses(path: Path) -> dict[str, int]:
    lines = subprocess.run(["nm", path], check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: int(address, 16) for address, _, name in (line.split() for line in lines if line[0] != " ")}


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param((), id="gnu-hash"),
        pytest.param(("-Wl,--hash-style=sysv",), id="sysv-hash"),
        pytest.param(("-Wl,-Ttext-segment=0x400000",), id="addresses-apart-from-offsets"),
        pytest.param(("-s",), id="without-symtab"),
    ],
)
def test_offsets_are_those_of_the_functions(tmp_path: Path, build: Build, flags: tuple[str, ...]) -> None:
    path = build(tmp_path / "libcuda.so.1", DRIVER, *flags)
    content = path.read_bytes()
    loaded = ctypes.CDLL(str(path))
    sites = probe_sites(library_at(path))
    assert [(site.symbol, site.api_id) for site in sites] == [
        ("cuLaunchKernel", 1),
        ("cuLaunchKernelEx", 3),
        ("cuGraphLaunch", 7),
        ("cuStreamSynchronize", 9),
        ("cuMemcpyHtoDAsync_v2", 17),
        ("cuMemFree_v2", 22),
    ]
    for site in sites:
        address = ctypes.cast(loaded[site.symbol], ctypes.c_void_p).value
        assert address is not None
        in_memory = ctypes.string_at(address, 24)
        entry = site.file_offset - site.point.delta
        assert content[entry : entry + 24] == in_memory


def test_offsets_are_not_addresses(tmp_path: Path, build: Build) -> None:
    path = build(tmp_path / "libcuda.so.1", DRIVER, "-Wl,-Ttext-segment=0x400000")
    address = symbol_addresses(path)["cuLaunchKernel"]
    (site,) = (site for site in probe_sites(library_at(path)) if site.symbol == "cuLaunchKernel")
    assert site.file_offset - site.point.delta == address - 0x400000


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86-64")
def test_points_follow_the_compiler(tmp_path: Path, build: Build) -> None:
    plain = build(tmp_path / "libcuda.so.1", DRIVER, "-fcf-protection=none", "-fno-omit-frame-pointer")
    marked = build(tmp_path / "libcuda.so.2", DRIVER, "-fcf-protection=full", "-fno-omit-frame-pointer")
    for path, delta in ((plain, 0), (marked, 4)):
        points = {site.point for site in probe_sites(library_at(path))}
        assert {(point.delta, point.instruction, point.cost) for point in points} == {
            (delta, "push rbp", "emulated")
        }


def test_only_the_wanted_classes(tmp_path: Path, build: Build) -> None:
    library = library_at(build(tmp_path / "libcuda.so.1", DRIVER))
    assert [site.symbol for site in probe_sites(library, ("sync", "graph_launch"))] == [
        "cuGraphLaunch",
        "cuStreamSynchronize",
    ]


def test_a_library_whose_section_headers_were_removed(tmp_path: Path, build: Build) -> None:
    path = build(tmp_path / "libcuda.so.1", DRIVER)
    expected = probe_sites(library_at(path))
    content = bytearray(path.read_bytes())
    struct.pack_into("<Q", content, 40, 0)
    struct.pack_into("<HH", content, 60, 0, 0)
    path.write_bytes(content)
    assert probe_sites(library_at(path)) == expected


def test_a_library_without_symbols(tmp_path: Path, build: Build) -> None:
    path = build(tmp_path / "libcuda.so.1", DRIVER, "-s", "-fvisibility=hidden")
    with loading(path) as pid:
        (library,) = find_libraries(pid)
        with pytest.raises(NoSymbolsError, match="stripped") as caught:
            probe_sites(library)
    assert caught.value.path == str(path)
    assert caught.value.remedy


def test_a_runtime_without_symbols_points_to_the_driver(tmp_path: Path, build: Build) -> None:
    path = build(tmp_path / "libcudart.so.12", RUNTIME, "-s", "-fvisibility=hidden")
    with pytest.raises(NoSymbolsError, match=r"libcuda\.so\.1"):
        probe_sites(library_at(path, "runtime"))


def test_undefined_symbols_and_data_are_no_functions(tmp_path: Path, build: Build) -> None:
    source = (
        "extern int cuLaunchKernel(int); int cuGraphLaunch = 3; int f(int x) { return cuLaunchKernel(x); }"
    )
    with pytest.raises(NoSymbolsError):
        probe_sites(library_at(build(tmp_path / "libcuda.so.1", source)))


def test_a_library_for_another_machine(tmp_path: Path, build: Build) -> None:
    path = build(tmp_path / "libcuda.so.1", DRIVER)
    content = bytearray(path.read_bytes())
    content[18:20] = struct.pack("<H", 0x15)
    path.write_bytes(content)
    with pytest.raises(NoSymbolsError, match=f"EM_PPC64, this machine is {platform.machine()}"):
        probe_sites(library_at(path))


@pytest.mark.parametrize("length", [0, 3, 63, 64, 500, 2000])
def test_a_truncated_library(tmp_path: Path, build: Build, length: int) -> None:
    path = build(tmp_path / "libcuda.so.1", DRIVER)
    os.truncate(path, length)
    with pytest.raises(NoSymbolsError):
        probe_sites(library_at(path))


def test_a_pipe_in_the_place_of_a_library(tmp_path: Path) -> None:
    path = tmp_path / "libcuda.so.1"
    os.mkfifo(path)
    with pytest.raises(LibraryAccessError, match="not a regular file"):
        probe_sites(library_at(path))


@pytest.mark.parametrize("kind", ["driver", "static-runtime"])
def test_damaged_libraries_neither_hang_nor_surprise(tmp_path: Path, build: Build, kind: LibraryKind) -> None:
    path = build(tmp_path / "libcuda.so.1", DRIVER if kind == "driver" else RUNTIME)
    sound = path.read_bytes()
    tables = sound.find(b"cuLaunchKernel" if kind == "driver" else b"cudaLaunchKernel") + 200
    chance = random.Random(20)
    for _ in range(150):
        content = bytearray(sound)
        for _ in range(chance.randrange(1, 6)):
            content[chance.randrange(16, tables)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        path.write_bytes(content)
        with contextlib.suppress(MeasureError):
            probe_sites(library_at(path, kind))


def test_a_hash_chain_without_end(tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(tmp_path / "libcuda.so.1", DRIVER)
    monkeypatch.setattr(elf, "_MAX_READS", 20)
    with pytest.raises(NoSymbolsError, match="too large"):
        probe_sites(library_at(path))

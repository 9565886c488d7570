"""Finding the CUDA libraries of processes, on libraries compiled here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.cuda_programs import (
    DRIVER,
    LOADER,
    RUNTIME,
    STATIC_PROGRAM,
    Build,
    identity,
    loading,
    running,
)

from quietcore.probes import cuda_libs
from quietcore.probes.cuda_libs import LibraryAccessError, find_libraries, mapped_files, probe_sites

# Mapped files


def test_mapped_files_agree_with_stat(tmp_path: Path, build: Build) -> None:
    path = build(tmp_path / "a folder" / "some library.so", DRIVER)
    with loading(path) as pid:
        (found,) = (file for file in mapped_files(pid) if file.path == str(path))
        assert (found.device, found.inode) == identity(path)
        assert found.executable
        assert not found.deleted
        path.unlink()
        (found,) = (file for file in mapped_files(pid) if file.path == str(path))
        assert found.deleted


def test_every_file_is_listed_once(tmp_path: Path, build: Build) -> None:
    with loading(build(tmp_path / "libcuda.so.1", DRIVER)) as pid:
        files = mapped_files(pid)
    identities = [(file.device, file.inode) for file in files]
    assert len(identities) == len(set(identities))


def test_a_process_that_is_gone_has_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert mapped_files(process.pid) == []
    assert find_libraries(process.pid) == []


def test_a_zombie_has_nothing() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert find_libraries(process.pid) == []


def test_a_process_that_must_not_be_inspected(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(LibraryAccessError, match="permission denied; run as root") as caught:
        find_libraries(os.getpid())
    assert caught.value.pid == os.getpid()


# Libraries


def test_driver_comes_first_and_is_the_layer_to_probe(tmp_path: Path, build: Build) -> None:
    runtime = build(tmp_path / "libcudart.so.12.8.90", RUNTIME)
    driver = build(tmp_path / "libcuda.so.570.86.15", DRIVER)
    with loading(runtime, driver) as pid:
        first, second = find_libraries(pid)
    assert (first.kind, first.version, first.primary) == ("driver", "570.86.15", True)
    assert (second.kind, second.version, second.primary) == ("runtime", "12.8.90", False)
    assert (first.device, first.inode) == identity(driver)
    assert (first.path, first.pid) == (str(driver), pid)


def test_runtime_without_a_driver_is_the_layer_to_probe(tmp_path: Path, build: Build) -> None:
    with loading(build(tmp_path / "libcudart-9335f6a2.so.12", RUNTIME)) as pid:
        (library,) = find_libraries(pid)
        assert (library.kind, library.version, library.primary) == ("runtime", "12", True)
        assert [site.symbol for site in probe_sites(library)] == ["cudaLaunchKernel", "cudaMemcpyAsync"]


@pytest.mark.parametrize(
    "name", ["libcudadebugger.so.1", "libcuda.so.1.py", "mylibcuda.so.1", "libcudart.txt"]
)
def test_other_libraries_are_left_alone(tmp_path: Path, build: Build, name: str) -> None:
    with loading(build(tmp_path / name, DRIVER.replace("cu", "other"))) as pid:
        assert find_libraries(pid) == []


def test_a_library_that_is_only_read_is_not_in_use(tmp_path: Path, build: Build) -> None:
    path = build(tmp_path / "libcuda.so.1", DRIVER)
    reader = (
        "import mmap, sys; file = open(sys.argv[1], 'rb');"
        "kept = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); print(flush=True); sys.stdin.read(1)"
    )
    with running([sys.executable, "-S", "-c", reader, path]) as (pid, _):
        assert any(file.path == str(path) for file in mapped_files(pid))
        assert find_libraries(pid) == []


def test_two_environments_have_two_libraries_and_one_copy_is_one(tmp_path: Path, build: Build) -> None:
    one = build(tmp_path / "venv1" / "libcudart.so.12", RUNTIME)
    other = tmp_path / "venv2" / "libcudart.so.12"
    other.parent.mkdir()
    shutil.copy(one, other)
    link = tmp_path / "libcudart.so"
    link.symlink_to(one)
    with loading(one) as first, loading(other) as second, loading(link) as third:
        (a,), (b,), (c,) = find_libraries(first), find_libraries(second), find_libraries(third)
    assert a != b
    assert a == c
    assert len({a, b, c}) == 2


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_a_deleted_library_is_opened_all_the_same(tmp_path: Path, build: Build, replaced: bool) -> None:
    path = build(tmp_path / "libcuda.so.1", DRIVER)
    expected, content = identity(path), path.read_bytes()
    with loading(path) as pid:
        path.unlink()
        if replaced:
            build(path, "int cuGraphLaunch(int x) { return x; }")
        (library,) = find_libraries(pid)
        assert (library.device, library.inode) == expected
        assert library.path == str(path)
        assert Path(library.open_path).read_bytes() == content
        assert "cuLaunchKernel" in {site.symbol for site in probe_sites(library)}


def test_a_process_that_ends_before_its_library_is_read(tmp_path: Path, build: Build) -> None:
    path = build(tmp_path / "libcuda.so.1", DRIVER)
    with loading(path) as pid:
        (library,) = find_libraries(pid)
    with pytest.raises(LibraryAccessError, match="is the process still running"):
        probe_sites(library)


def test_a_process_that_ends_while_it_is_looked_at(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build(tmp_path / "libcuda.so.1", DRIVER)
    with loading(path) as pid:
        files = mapped_files(pid)
        path.unlink()
    monkeypatch.setattr(cuda_libs, "mapped_files", lambda _: files)
    assert find_libraries(pid) == []


class TestWithoutMapFiles:
    """What a user without CAP_CHECKPOINT_RESTORE gets."""

    @pytest.fixture(autouse=True)
    def _refuse(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.stat

        def refuse(path: str, **options: bool) -> os.stat_result:
            if "/map_files/" in str(path):
                raise PermissionError
            return real(path, **options)

        monkeypatch.setattr(os, "stat", refuse)

    def test_the_path_within_the_root_of_the_process_serves(self, tmp_path: Path, build: Build) -> None:
        path = build(tmp_path / "libcuda.so.1", DRIVER)
        with loading(path) as pid:
            (library,) = find_libraries(pid)
            assert library.open_path == f"/proc/{pid}/root{path}"
            assert probe_sites(library)

    def test_a_deleted_file_cannot_be_had(self, tmp_path: Path, build: Build) -> None:
        path = build(tmp_path / "libcuda.so.1", DRIVER)
        with loading(path) as pid:
            path.unlink()
            with pytest.raises(LibraryAccessError, match=r"deleted.*CAP_CHECKPOINT_RESTORE"):
                find_libraries(pid)

    def test_another_file_of_that_name_is_not_taken(self, tmp_path: Path, build: Build) -> None:
        path = build(tmp_path / "libcuda.so.1", DRIVER)
        with loading(path) as pid:
            build(tmp_path / "new", DRIVER).rename(path)
            with pytest.raises(LibraryAccessError):
                find_libraries(pid)

    def test_a_program_that_cannot_be_read_is_taken_to_have_no_cuda(
        self, tmp_path: Path, build: Build
    ) -> None:
        program = build(tmp_path / "program", STATIC_PROGRAM, shared=False)
        with running([program]) as (pid, _):
            program.unlink()
            assert find_libraries(pid) == []


@pytest.mark.root
def test_a_library_in_another_mount_namespace(tmp_path: Path, build: Build) -> None:
    ours = build(tmp_path / "mounted" / "libcuda.so.1", "int cuGraphLaunch(int x) { return x; }")
    theirs = build(tmp_path / "theirs.so", DRIVER)
    script = 'mount -t tmpfs none "$1" && cp "$2" "$3" && exec "$4" -S -c "$5" "$3"'
    arguments: list[str | Path] = [ours.parent, theirs, ours, sys.executable, LOADER]
    with running(["unshare", "--mount", "sh", "-c", script, "sh", *arguments]) as (pid, line):
        assert line == "ready\n"
        (library,) = find_libraries(pid)
        assert library.path == str(ours)
        assert (library.device, library.inode) != identity(ours)
        assert "cuLaunchKernel" in {site.symbol for site in probe_sites(library)}


# A runtime within the program


def test_static_runtime_of_a_program(tmp_path: Path, build: Build) -> None:
    program = build(tmp_path / "program", STATIC_PROGRAM, shared=False)
    with running([program]) as (pid, line):
        (library,) = find_libraries(pid)
        assert (library.kind, library.primary, library.path) == ("static-runtime", True, str(program))
        sites = probe_sites(library, ("launch", "copy"))
        assert [site.symbol for site in sites] == ["cudaLaunchKernel", "cudaMemcpyAsync"]
        content = program.read_bytes()
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for site, address in zip(sites, line.split(), strict=True):
                memory.seek(int(address, 16) + site.point.delta)
                assert memory.read(16) == content[site.file_offset : site.file_offset + 16]


def test_static_runtime_is_not_looked_for_beside_a_driver(tmp_path: Path, build: Build) -> None:
    driver = build(tmp_path / "libcuda.so.1", DRIVER)
    program = build(tmp_path / "libengine.so", RUNTIME)
    with loading(driver, program) as pid:
        assert [library.kind for library in find_libraries(pid)] == ["driver"]
    with loading(program) as pid:
        assert [library.kind for library in find_libraries(pid)] == ["static-runtime"]


def test_a_stripped_program_shows_nothing(tmp_path: Path, build: Build) -> None:
    with running([build(tmp_path / "program", STATIC_PROGRAM, "-s", shared=False)]) as (pid, _):
        assert find_libraries(pid) == []


def test_a_program_that_only_imports_the_runtime_has_none(tmp_path: Path, build: Build) -> None:
    library = build(tmp_path / "libother.so", RUNTIME, "-s")
    source = (
        "#include <stdio.h>\nint cudaLaunchKernel(int); int (*kept)(int) = cudaLaunchKernel;"
        'int main(void) { puts("ready"); fflush(stdout); return getchar() + kept(1) > 1000; }'
    )
    program = build(tmp_path / "program", source, "-Wl,--no-as-needed", str(library), shared=False)
    with running([program]) as (pid, line):
        assert line == "ready\n"
        assert find_libraries(pid) == []


def test_answers_about_programs_are_kept_until_the_file_changes(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = build(tmp_path / "libengine.so", RUNTIME)
    with loading(program) as pid:
        assert find_libraries(pid)
        with monkeypatch.context() as patch:
            patch.setattr(cuda_libs, "local_functions", lambda *_: pytest.fail("looked again"))
            assert find_libraries(pid)
        os.utime(program, (1, 1))
        looked: list[object] = []
        monkeypatch.setattr(cuda_libs, "local_functions", lambda *names: looked.append(names))
        find_libraries(pid)
        assert looked

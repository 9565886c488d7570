"""What a wheel built through the sdist holds; a wrong mapping is silent, so each file is compared."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "quietcore"
ROOMS = ("agent", "dashboards", "probes", "scheduler")
PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")

DEMO_FILES = {
    *(f"quietcore/agent/_built/{name}" for name in ("launcher", "libcuda.so.1", "libcudart.so.12", "thief")),
    "quietcore/probes/_built/libselftest.so",
}
LIBRARY_FILES = {
    f"quietcore/probes/_built/lib/{name}" for name in ("libbpf.so.1", "libelf.so.1", "libz.so.1", "LICENSES")
}


def read_table(header: str) -> str:
    """The text under one header of pyproject.toml (tomllib needs Python 3.11)."""
    found = re.search(rf"^\[{re.escape(header)}\]\n(.*?)(?=^\[|\Z)", PYPROJECT, re.MULTILINE | re.DOTALL)
    assert found, header
    return found.group(1)


def list_tracked(*paths: str) -> set[str]:
    """Files that git tracks or would add, so that what the build leaves in the tree does not count."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *paths],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return {name for name in listing.split("\0") if name and (ROOT / name).is_file()}


def test_links_lists_and_sources_name_the_same_rooms() -> None:
    links = {path.name: os.readlink(path) for path in PACKAGE.iterdir() if path.is_symlink()}
    wheel = read_table("tool.hatch.build.targets.wheel")
    only_include = re.search(r"only-include = \[(.*?)\]", wheel, re.DOTALL)
    assert only_include
    included = set(re.findall(r'"([^"]+)"', only_include.group(1)))
    mapping = read_table("tool.hatch.build.targets.wheel.sources")
    sources = dict(re.findall(r'^"([^"]+)" = "([^"]+)"', mapping, re.MULTILINE))
    not_in_sdist = set(re.findall(r'"/src/quietcore/(\w+)"', read_table("tool.hatch.build.targets.sdist")))

    assert links == {room: f"../../{room}" for room in ROOMS}
    assert included == {"src/quietcore/__init__.py", "src/quietcore/py.typed", *ROOMS}
    assert sources == {"src/quietcore": "quietcore", **{room: f"quietcore/{room}" for room in ROOMS}}
    assert not_in_sdist == set(ROOMS)


def test_only_two_real_files_live_under_src() -> None:
    real = {path.name for path in PACKAGE.iterdir() if not path.is_symlink() and path.name != "__pycache__"}
    assert real == {"__init__.py", "py.typed"}


def test_no_dependency_is_named_after_another_project() -> None:
    # The PyPI projects of these names are something else than the modules that we import.
    names = set(re.findall(r'^\s+"([A-Za-z0-9_.-]+)(?:\[.*?\])?[<>=~!]', PYPROJECT, re.MULTILINE))
    assert names & {"bcc", "pynvml"} == set()


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(sdist, wheel), the wheel made from the sdist."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    out = tmp_path_factory.mktemp("dist")
    environment = {name: value for name, value in os.environ.items() if name != "QUIETCORE_SKIP_BPF"}
    # Without isolation: the build's one requirement, hatchling, is in the development environment.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_sdist_carries_sources_only(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    assert all(member.isfile() for member in members)
    assert list_tracked(*ROOMS, "tests/doubles", "scripts") <= names
    assert {name for name in names if "_built" in name or re.match(r"src/quietcore/\w+/", name)} == set()
    assert names - list_tracked() == {"PKG-INFO"}


@pytest.mark.slow
def test_wheel_holds_each_file_once(distributions: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(distributions[1]) as archive:
        names = archive.namelist()
    objects = {
        f"quietcore/probes/_built/{Path(name).stem}.o"
        for name in list_tracked("probes/bpf")
        if name.endswith(".bpf.c")
    }
    sources = {f"quietcore/{name}" for name in list_tracked(*ROOMS) - {"probes/_compile.py"}}
    top = {"quietcore/__init__.py", "quietcore/py.typed"}
    expected = top | sources | objects | LIBRARY_FILES | DEMO_FILES
    content = [name for name in names if ".dist-info/" not in name]

    assert {"missing": expected - set(content), "extra": set(content) - expected} == {
        "missing": set(),
        "extra": set(),
    }
    assert len(content) == len(expected)
    assert {name.partition("/")[0] for name in content} == {"quietcore"}
    assert objects


@pytest.mark.slow
def test_wheel_is_tagged_for_this_platform_and_any_python(distributions: tuple[Path, Path]) -> None:
    assert re.fullmatch(r"quietcore-[^-]+-py3-none-linux_\w+\.whl", distributions[1].name)


@pytest.mark.slow
def test_objects_name_no_folder_of_the_builder(distributions: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(distributions[1]) as archive:
        objects = {name: archive.read(name) for name in archive.namelist() if name.endswith(".bpf.o")}
    assert [name for name, data in objects.items() if b"/tmp/" in data or os.fsencode(ROOT) in data] == []
    assert [name for name, data in objects.items() if b".BTF" not in data] == []


@pytest.mark.slow
def test_installed_wheel_imports_its_rooms(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(distributions[1]) as archive:
        archive.extractall(tmp_path)
    imports = ", ".join(f"quietcore.{room}" for room in ROOMS)
    code = f"import quietcore, {imports}; print(quietcore.__file__)"
    printed = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    ).stdout
    assert printed.strip() == str(tmp_path / "quietcore" / "__init__.py")

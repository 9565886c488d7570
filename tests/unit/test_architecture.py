"""The arrows between the rooms, and the size of a module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("agent", "probes", "scheduler", "dashboards")
MAX_LINES = 400

# What a room must not import, anywhere in its files, be it at the top or inside a function.
FORBIDDEN = {
    "probes": ("quietcore.agent", "quietcore.scheduler", "quietcore.dashboards"),
    "scheduler": (
        *("quietcore.agent", "quietcore.probes", "quietcore.dashboards"),
        *("click", "psutil", "rich", "prometheus_client", "pynvml"),
    ),
    "dashboards": ("quietcore.agent", "quietcore.probes", "quietcore.scheduler"),
}

# The agent sees the scheduler through the shared page; its bench verb alone runs the scheduler's benchmarks.
AGENT_MAY_IMPORT = ("quietcore.scheduler.page",)
BENCH_MAY_IMPORT = (*AGENT_MAY_IMPORT, "quietcore.scheduler.bench")
BENCH_VERB = "agent/cli/bench/"


def list_modules(room: str) -> list[Path]:
    return sorted(path for path in (ROOT / room).rglob("*.py") if "_built" not in path.parts)


def list_imports(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, relative imports resolved."""
    package = ["quietcore", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text("utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_imports_nothing_forbidden(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in list_modules(room)
        for name in list_imports(path)
        if is_within(name, FORBIDDEN[room])
    ]
    assert wrong == []


def test_the_agent_sees_only_the_page_of_the_scheduler() -> None:
    wrong = []
    for path in list_modules("agent"):
        relative = path.relative_to(ROOT).as_posix()
        allowed = BENCH_MAY_IMPORT if relative.startswith(BENCH_VERB) else AGENT_MAY_IMPORT
        wrong += [
            f"{relative} imports {name}"
            for name in list_imports(path)
            if is_within(name, ("quietcore.scheduler",)) and not is_within(name, allowed)
        ]
    assert wrong == []


def test_no_module_goes_by_its_short_name() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for folder in (*ROOMS, "tests", "scripts")
        for path in list_modules(folder)
        for name in list_imports(path)
        if is_within(name, ROOMS)
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", [*ROOMS, "src", "tests", "scripts"])
def test_every_module_is_short(folder: str) -> None:
    lengths = [(len(path.read_text("utf-8").splitlines()), path) for path in list_modules(folder)]
    assert [f"{path.relative_to(ROOT)}: {lines}" for lines, path in lengths if lines >= MAX_LINES] == []


def test_list_imports_resolves_relative_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "probes" / "deep").mkdir(parents=True)
    module = tmp_path / "probes" / "deep" / "module.py"
    module.write_text("import os.path\nfrom . import a\nfrom .b import c\nfrom ... import agent\n")
    assert set(list_imports(module)) == {
        "os.path",
        "quietcore.probes.deep.a",
        "quietcore.probes.deep.b.c",
        "quietcore.agent",
    }

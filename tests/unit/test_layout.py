"""The ctypes mirror against the C compiler: sizes, offsets, numbers and the order of names."""

from __future__ import annotations

import ctypes as ct
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from quietcore.probes import decode, layout
from quietcore.probes.cuda_libs import API_CLASSES, API_SYMBOLS
from quietcore.probes.durations import SLOTS, SUB_BITS, Theft
from quietcore.probes.readings import State

HEADER = Path(__file__).resolve().parents[2] / "probes" / "bpf" / "layout.h"
MIRRORED: dict[str, type[ct.Structure]] = {
    "thread": layout.Thread,
    "waiter": layout.Waiter,
    "cpu_queue": layout.CpuQueue,
    "blame_key": layout.BlameKey,
    "blame": layout.Blame,
    "wake_key": layout.WakeKey,
    "wake": layout.Wake,
    "irq_key": layout.IrqKey,
    "irq_time": layout.IrqTime,
    "toll": layout.Toll,
    "durations": layout.Durations,
    "launcher": layout.Launcher,
    "cuda_config": layout.CudaConfig,
    "event": layout.Event,
}
# only the kernel side looks into these
INTERNAL = {"irq_frame", "irq_stack"}
CONSTANTS = {
    **{name: getattr(layout, name) for name in ("COMM_LEN", "WAITERS_PER_CPU", "IRQ_NESTING", "MAX_APIS")},
    **{name: getattr(layout, name) for name in ("NR_THEFTS", "NR_INTERRUPTIONS", "NR_SOFTIRQS")},
    **{name: getattr(layout, name) for name in ("NR_VECTORS", "NR_IRQ_TOTALS")},
    **{name: getattr(layout, name) for name in ("IRQ_HARD", "IRQ_SOFT", "IRQ_VECTOR", "UNKNOWN", "EXITED")},
    **{name: getattr(layout, name) for name in ("EVENT_OUTLIER", "EVENT_FORK", "EVENT_EXEC", "EVENT_EXIT")},
    **{state.name: number for number, state in enumerate(State)},
    **{state.name: getattr(layout, state.name) for state in State},
    "NR_STATES": len(State),
    "HIST_SLOTS": SLOTS,
    "HIST_SUB_BITS": SUB_BITS,
    "NR_LOSSES": len(layout.LOSSES),
    **{f"STOLEN_{theft.name}": number for number, theft in enumerate(Theft)},
    **{f"VECTOR_{name.upper()}": number for number, name in enumerate(layout.VECTORS)},
    **{f"API_{name.upper()}": number for number, name in enumerate(API_CLASSES)},
    "TOTAL_SOFTIRQ": 0,
    "TOTAL_VECTOR": len(layout.SOFTIRQS),
    "TOTAL_HARD": len(layout.SOFTIRQS) + len(layout.VECTORS),
    # the order in which `durations.hist` is taken apart: clean, slept within, pushed
    "UNINTERRUPTED": 0,
    "SWITCHED_VOLUNTARILY": 1,
    "SWITCHED_INVOLUNTARILY": 2,
}
LOSSES = {
    "LOST_THREADS": "threads",
    "LOST_BLAME": "blame_ns",
    "LOST_WAITERS": "waiters",
    "LOST_WAKES": "wakes",
    "LOST_IRQ": "irq_ns",
    "LOST_IRQ_STACK": "irq_nesting",
    "LOST_LAUNCHERS": "launchers",
    "LOST_EVENTS": "events",
    "LOST_TARGETS": "targets",
    "LOST_SWITCHES": "switches",
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Whatever the C compiler says of the header: constants, sizes, and offsets and sizes of fields."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    expressions = {name: name for name in [*CONSTANTS, *LOSSES]}
    for name, mirror in MIRRORED.items():
        expressions[name] = f"sizeof(struct {name})"
        for field in fields(mirror):
            expressions[f"{name}.{field}"] = f"offsetof(struct {name}, {field})"
            expressions[f"{name}.{field} size"] = f"sizeof(((struct {name} *)0)->{field})"
    lines = [f'printf("%s\\"{key}\\": %ld", sep, (long)({c})); sep = ",";' for key, c in expressions.items()]
    folder = tmp_path_factory.mktemp("layout")
    (folder / "layout.c").write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/types.h>\n"
        f'#include "{HEADER}"\nint main(void) {{\n    const char *sep = "{{";\n'
        + "\n".join(lines)
        + '\n    printf("}");\n    return 0;\n}\n'
    )
    subprocess.run(["cc", "-o", "layout", "layout.c"], cwd=folder, check=True)
    printed = subprocess.run([folder / "layout"], capture_output=True, check=True).stdout
    values: dict[str, int] = json.loads(printed)
    return values


def fields(mirror: type[ct.Structure]) -> list[str]:
    return [field[0] for field in mirror._fields_]


def test_every_struct_that_user_space_reads_is_mirrored() -> None:
    declared = set(re.findall(r"^struct (\w+) \{", HEADER.read_text(), re.M))
    assert declared - INTERNAL == set(MIRRORED)


@pytest.mark.parametrize("name", MIRRORED)
def test_fields_come_in_the_same_order_and_none_is_left_out(name: str) -> None:
    body = re.search(rf"^struct {name} \{{\n(.*?)^}};", HEADER.read_text(), re.M | re.S)
    assert body
    declared = re.findall(r"^\t(?:struct )?\w+ (\w+)[\[;]", body[1], re.M)
    assert fields(MIRRORED[name]) == declared


@pytest.mark.parametrize("name", MIRRORED)
def test_sizes_and_offsets_are_those_of_the_compiler(name: str, compiled: dict[str, int]) -> None:
    mirror = MIRRORED[name]
    assert ct.sizeof(mirror) == compiled[name]
    for field in fields(mirror):
        descriptor = getattr(mirror, field)
        assert (field, descriptor.offset) == (field, compiled[f"{name}.{field}"])
        assert (field, descriptor.size) == (field, compiled[f"{name}.{field} size"])


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_those_of_the_header(name: str, compiled: dict[str, int]) -> None:
    assert CONSTANTS[name] == compiled[name]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_named_after_its_row(name: str, compiled: dict[str, int]) -> None:
    assert layout.LOSSES[compiled[name]] == LOSSES[name]


def test_no_enumerator_is_unknown_to_this_test() -> None:
    enums = re.findall(r"^enum \w+ \{\n(.*?)^};", HEADER.read_text(), re.M | re.S)
    names = {name for body in enums for name in re.findall(r"^\t([A-Z_]+) =", body, re.M)}
    assert names - CONSTANTS.keys() - LOSSES.keys() == set()


def test_softirqs_are_named_in_the_kernels_order() -> None:
    rows = Path("/proc/softirqs").read_text().splitlines()[1:]
    assert tuple(row.split(":")[0].strip() for row in rows) == layout.SOFTIRQS
    assert len(layout.SOFTIRQS) == layout.NR_SOFTIRQS


def test_states_are_decoded_in_the_order_of_the_header() -> None:
    assert [getattr(layout, state.name) for state in decode.STATES] == list(range(len(State)))


def test_every_api_fits_the_cookie_and_the_table_of_calls() -> None:
    ids = [api.api_id for api in API_SYMBOLS.values()]
    # the last id is kept for calibration
    assert max(ids) < layout.MAX_APIS - 1
    assert len(API_CLASSES) <= 8

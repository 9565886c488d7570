"""Where in a function a uprobe is cheap, and where a return probe is safe.

A uprobe puts a trap in the place of one instruction, and the kernel then has to run that instruction for the
thread. What it can emulate costs the trap alone (0.4 to 1 us a hit measured on x86-64); all else is
single-stepped out of line (10 us in a virtual machine). Launches are microseconds apart, so the place is
chosen from the function's own bytes, by what the kernel emulates (arch/x86/kernel/uprobes.c and
arch/arm64/kernel/probes/).

Nearly all CUDA entry points begin with a push, which a table decides. Capstone (15 MB resident) is imported
only when instructions have to be walked over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

Architecture = Literal["x86_64", "aarch64"]
Cost = Literal["nop5", "emulated", "single-step"]
KernelVersion = tuple[int, int]

MAX_WALK = 32  # bytes from the entry to the probe

# What the kernel emulates, and since when.
_X86_NOPS: dict[bytes, KernelVersion] = {
    bytes.fromhex("90"): (0, 0),
    bytes.fromhex("6690"): (6, 2),  # refused before
    bytes.fromhex("0f1f00"): (6, 18),
    bytes.fromhex("0f1f4000"): (6, 18),
    bytes.fromhex("0f1f440000"): (6, 18),
    bytes.fromhex("660f1f440000"): (6, 18),
    bytes.fromhex("0f1f8000000000"): (6, 18),
    bytes.fromhex("0f1f840000000000"): (6, 18),
}
_ARM64_NOP_SINCE: KernelVersion = (6, 13)
# mask, value, name; lowest bit and width of the distance in words (width 0: to a register)
_ARM64_BRANCHES = (
    (0x7C000000, 0x14000000, "b", 0, 26),
    (0xFF000010, 0x54000000, "b.cond", 5, 19),
    (0x7E000000, 0x34000000, "cbz", 5, 19),
    (0x7E000000, 0x36000000, "tbz", 5, 14),
    (0xFF9FFC1F, 0xD61F0000, "br", 0, 0),
)

# Prefixes (segment override, lock) with which the kernel refuses a uprobe.
_X86_REFUSED = re.compile(rb"[\x64-\x67\xf2\xf3]*[\x26\x2e\x36\x3e\xf0]")
_X86_JUMP_PREFIXES = b"\x2e\x3e\x48\x66\xf2\xf3"
_X86_REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
_STACK_REGISTERS = frozenset(("rsp", "esp", "sp", "spl", "wsp", "x30", "w30", "lr"))
_CONTROL_FLOW = frozenset(range(1, 8))  # capstone's groups: jump, call, ret, int, iret, privilege, relative


@dataclass(frozen=True)
class ProbePoint:
    """A place for a uprobe in a function. It fires once a call, before its instruction runs.

    With a delta above 0 the registers may no longer hold the arguments.
    """

    delta: int
    """Bytes from the function's symbol to the instruction."""
    instruction: str
    """The instruction in words, for messages."""
    cost: Cost
    """``nop5`` (a call instead of a trap from kernel 6.18), ``emulated`` or ``single-step`` (slow: warn)."""
    return_safe: bool
    """Whether a return probe may sit here, too. If not, it would corrupt the process."""


@dataclass(frozen=True)
class _Step:
    """One instruction on the way through the prologue."""

    delta: int
    size: int
    text: str
    cost: Cost = "single-step"
    landing_pad: bool = False
    refused: bool = False  # by the kernel
    stack: bool = False  # touches the stack or what finds the return address
    ends: bool = False  # the next instruction need not run


@lru_cache(maxsize=1)
def running_kernel() -> KernelVersion:
    """Return (major, minor) of the running kernel, (0, 0) if its release does not begin with them."""
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def choose_probe_point(
    code: bytes,
    architecture: Architecture,
    *,
    address: int = 0,
    kernel: KernelVersion | None = None,
    entry_only: bool = False,
) -> ProbePoint:
    """Choose where to put a uprobe into a function.

    ``code`` is the function from its first byte: 64 bytes suffice, more reveal loops that begin in the
    prologue. ``address`` (virtual, or offset in the file) gives its place in the page; ``kernel`` is the one
    that will run the probe, by default the running one. ``entry_only`` accepts a cheap place behind a push or
    a stack adjustment, at the price of ``return_safe``.

    Without a cheap place the result is the first instruction behind endbr64 or bti, as ``single-step``.
    Raises ValueError for an unknown architecture or no code.
    """
    if not code:
        raise ValueError("no code to choose a probe point in")
    version = running_kernel() if kernel is None else kernel
    if architecture == "x86_64":
        steps, loops_into = _x86_steps(code, address, version), _x86_loops_into
    elif architecture == "aarch64":
        steps, loops_into = _arm64_steps(code, version), _arm64_loops_into
    else:
        raise ValueError(f"no probe points known for the architecture {architecture!r}")

    slow: ProbePoint | None = None
    cheap: ProbePoint | None = None
    opening = "(unknown)"
    stack_used = False
    for step in steps:
        if step.delta == 0:
            opening = step.text
            if step.landing_pad:
                continue
        # A jump back to here or before would fire the probe many times a call.
        if step.delta > MAX_WALK or (step.delta and loops_into(code, step.delta)):
            break
        point = ProbePoint(step.delta, step.text, step.cost, return_safe=not stack_used)
        # The call that replaces a nop5 overwrites a red zone; before the stack is touched, none is in use.
        if step.cost == "nop5" and not stack_used:
            return point
        if step.cost == "emulated":
            cheap = cheap or point
        elif step.cost == "single-step" and not (step.refused or stack_used):
            slow = slow or point
        if step.ends or (cheap and stack_used) or (step.stack and (cheap or not entry_only)):
            break
        stack_used = stack_used or step.stack
    return cheap or slow or ProbePoint(0, opening, "single-step", return_safe=True)


def _x86_steps(code: bytes, address: int, kernel: KernelVersion) -> Iterator[_Step]:
    delta = 0
    while delta < len(code):
        step = _x86_known(code, delta, address + delta, kernel) or _decode(code, delta, "x86_64")
        if step is None:
            return
        yield step
        delta += step.size


def _x86_known(code: bytes, delta: int, address: int, kernel: KernelVersion) -> _Step | None:
    """Tell the instructions whose handling is known from their bytes alone."""
    if code.startswith(b"\xf3\x0f\x1e\xfa", delta):
        return _Step(delta, 4, "endbr64", landing_pad=True)
    wide = code.startswith(b"\x41", delta)  # the only REX prefix with which a push is emulated
    opcode = code[delta + wide] if delta + wide < len(code) else 0
    if 0x50 <= opcode <= 0x57:
        return _Step(
            delta, 1 + wide, f"push {_X86_REGISTERS[opcode - 0x50 + 8 * wide]}", "emulated", stack=True
        )
    for nop, since in _X86_NOPS.items():
        if code.startswith(nop, delta):
            size, cost = len(nop), _cost(kernel >= since)
            # The kernel does not rewrite an instruction across two pages.
            if size == 5 and cost == "emulated" and address % 4096 <= 4096 - 5:
                cost = "nop5"
            return _Step(delta, size, f"nop{size}", cost, refused=size == 2 and kernel < since)
    if branch := _x86_branch(code, delta):
        size, name, _ = branch
        return _Step(delta, size, name, _cost(name != "loop"), ends=True)
    return None


def _x86_branch(code: bytes, at: int) -> tuple[int, str, int] | None:
    """Read size, name and target of a relative branch, if the bytes at ``at`` are one."""
    opcode = code[at]
    if 0x70 <= opcode <= 0x7F or 0xE0 <= opcode <= 0xE3 or opcode == 0xEB:
        size, width = 2, 1
        name = "jmp" if opcode == 0xEB else "jcc" if opcode <= 0x7F else "loop"
    elif opcode in (0xE8, 0xE9):
        size, width, name = 5, 4, "call" if opcode == 0xE8 else "jmp"
    elif opcode == 0x0F and at + 1 < len(code) and 0x80 <= code[at + 1] <= 0x8F:
        size, width, name = 6, 4, "jcc"
    else:
        return None
    end = at + size
    if end > len(code):
        return None
    return size, name, end + int.from_bytes(code[end - width : end], "little", signed=True)


def _x86_loops_into(code: bytes, delta: int) -> bool:
    """Tell whether a branch in ``code`` leads behind its entry but not behind ``delta``."""
    suspects = []  # also bytes within other instructions: decoding is only worth it if there are any
    for at in range(len(code)):
        branch = _x86_branch(code, at)
        if branch and 0 < branch[2] <= delta:
            suspects.append(at)
    if not suspects:
        return False
    starts: set[int] = set()
    end = 0
    for at, size, _, _ in _disassembler("x86_64").disasm_lite(code, 0):
        starts.add(at + (code[at] in _X86_JUMP_PREFIXES))
        end = at + size
    return any(at in starts or at >= end for at in suspects)


def _arm64_steps(code: bytes, kernel: KernelVersion) -> Iterator[_Step]:
    for delta in range(0, len(code) - 3, 4):
        word = int.from_bytes(code[delta : delta + 4], "little")
        if word & 0xFFFFFF3F == 0xD503241F:
            yield _Step(delta, 4, "bti", landing_pad=True)
        elif word == 0xD503201F:
            yield _Step(delta, 4, "nop", _cost(kernel >= _ARM64_NOP_SINCE))
        elif word & 0x1F000000 == 0x10000000:
            yield _Step(delta, 4, "adrp" if word >> 31 else "adr", "emulated")
        elif branch := _arm64_branch(word):
            yield _Step(delta, 4, branch[0], "emulated", ends=True)
        elif step := _decode(code, delta, "aarch64"):
            if word & 0xFFFFF01F == 0xD503201F:  # hints: paciasp signs the return address
                step = replace(step, stack=True)
            elif word & 0x3F000000 == 0x08000000 or word >> 25 == 0x6A:
                # A trap within an exclusive load and store, or among system instructions, breaks them.
                step = replace(step, refused=True, ends=True)
            elif word & 0x3B000000 == 0x18000000:  # load of a literal: simulation was broken, then removed
                step = replace(step, refused=True)
            yield step
        else:
            return


def _arm64_branch(word: int) -> tuple[str, int] | None:
    """Read name and distance in bytes (0: unknown) of a branch."""
    for mask, value, name, low, width in _ARM64_BRANCHES:
        if word & mask == value:
            words = word >> low & (1 << width) - 1
            return name, 4 * (words - (words >> width - 1 << width) if width else 0)
    return None


def _arm64_loops_into(code: bytes, delta: int) -> bool:
    for at in range(0, len(code) - 3, 4):
        branch = _arm64_branch(int.from_bytes(code[at : at + 4], "little"))
        if branch and branch[1] and 0 < at + branch[1] <= delta:
            return True
    return False


def _decode(code: bytes, delta: int, architecture: Architecture) -> _Step | None:
    window = code[delta : delta + 15]
    instruction = next(_disassembler(architecture).disasm(window, 0, 1), None)
    if instruction is None:
        return None
    registers = {instruction.reg_name(number) for numbers in instruction.regs_access() for number in numbers}
    registers.update(re.findall(r"\w+", instruction.op_str))  # capstone 5.0.1 forgets the base of an address
    return _Step(
        delta,
        instruction.size,
        f"{instruction.mnemonic} {instruction.op_str}".strip(),
        refused=architecture == "x86_64" and _X86_REFUSED.match(window) is not None,
        stack=not registers.isdisjoint(_STACK_REGISTERS),
        ends=not _CONTROL_FLOW.isdisjoint(instruction.groups),
    )


def _cost(emulated: bool) -> Cost:
    return "emulated" if emulated else "single-step"


@lru_cache(maxsize=2)
def _disassembler(architecture: Architecture) -> Any:
    import capstone

    if architecture == "x86_64":
        engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    else:
        engine = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    engine.detail = True
    return engine

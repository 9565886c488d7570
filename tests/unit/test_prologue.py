"""Which instruction of a function gets the uprobe."""

from __future__ import annotations

import subprocess
import sys

import pytest

from quietcore.probes.prologue import Architecture, ProbePoint, choose_probe_point, running_kernel

ARCHITECTURES: tuple[Architecture, ...] = ("x86_64", "aarch64")
NEW = (6, 18)
OLD = (5, 15)

ENDBR = "f30f1efa "
PUSH_RBP = "55 "
SUB_RSP = "4883ec08 "
NOP5 = "0f1f440000 "
RET = "c3 "


def choose(
    code: str, kernel: tuple[int, int] = NEW, address: int = 0, entry_only: bool = False
) -> ProbePoint:
    return choose_probe_point(
        bytes.fromhex(code), "x86_64", kernel=kernel, address=address, entry_only=entry_only
    )


def choose_arm64(*words: int, kernel: tuple[int, int] = NEW, entry_only: bool = False) -> ProbePoint:
    code = b"".join(word.to_bytes(4, "little") for word in words)
    return choose_probe_point(code, "aarch64", kernel=kernel, entry_only=entry_only)


@pytest.mark.parametrize(
    ("code", "delta", "instruction"),
    [
        pytest.param(PUSH_RBP + "4889e5", 0, "push rbp", id="push"),
        pytest.param("4157" + "4156", 0, "push r15", id="push-r15"),
        pytest.param(ENDBR + "53", 4, "push rbx", id="behind-endbr64"),
        pytest.param("90" + SUB_RSP, 0, "nop1", id="nop"),
        pytest.param("4989c8" + PUSH_RBP, 3, "push rbp", id="behind-mov"),
        pytest.param("31c0" + PUSH_RBP, 2, "push rbp", id="behind-xor"),
        pytest.param("64488b042528000000" + PUSH_RBP, 9, "push rbp", id="behind-load-of-canary"),
        pytest.param("85ff" + "7402" + "6690" + RET, 2, "jcc", id="at-short-jcc"),
        pytest.param("85ff" + "0f8401000000" + "90" + RET, 2, "jcc", id="at-near-jcc"),
        pytest.param("e901000000" + "90" + RET, 0, "jmp", id="at-jmp"),
        pytest.param("eb00" + RET, 0, "jmp", id="at-short-jmp"),
        pytest.param("e800000000" + RET, 0, "call", id="at-call"),
        pytest.param("662e0f1f840000000000" + PUSH_RBP, 10, "push rbp", id="behind-nop10-that-is-refused"),
    ],
)
def test_takes_an_instruction_that_the_kernel_emulates(code: str, delta: int, instruction: str) -> None:
    assert choose(code, OLD) == ProbePoint(delta, instruction, "emulated", return_safe=True)


@pytest.mark.parametrize(
    ("code", "delta", "instruction"),
    [
        pytest.param(SUB_RSP + RET, 0, "sub rsp, 8", id="sub"),
        pytest.param(ENDBR + SUB_RSP + RET, 4, "sub rsp, 8", id="endbr64-sub"),
        pytest.param(SUB_RSP + PUSH_RBP, 0, "sub rsp, 8", id="no-walk-past-stack-adjustment"),
        pytest.param("4889e0" + PUSH_RBP, 0, "mov rax, rsp", id="no-walk-past-use-of-stack-pointer"),
        pytest.param("48897c24f8" + PUSH_RBP, 0, "mov qword ptr [rsp - 8], rdi", id="no-walk-past-red-zone"),
        pytest.param("ff2500000000" + PUSH_RBP, 0, "jmp qword ptr [rip]", id="no-walk-past-indirect-jmp"),
        pytest.param("ffd0" + PUSH_RBP, 0, "call rax", id="no-walk-past-indirect-call"),
        pytest.param("31c0" + RET + PUSH_RBP, 0, "xor eax, eax", id="no-walk-past-ret"),
        pytest.param("e302" + PUSH_RBP, 0, "loop", id="no-walk-past-jrcxz"),
        pytest.param("4889c8" * 11 + PUSH_RBP, 0, "mov rax, rcx", id="no-walk-past-32-bytes"),
        pytest.param("4855", 0, "push rbp", id="push-with-another-prefix"),
        pytest.param("2e4889c8" + RET, 4, "ret", id="not-where-the-kernel-refuses"),
        pytest.param("0f", 0, "(unknown)", id="undecodable"),
    ],
)
def test_single_steps_where_nothing_is_cheap(code: str, delta: int, instruction: str) -> None:
    assert choose(code) == ProbePoint(delta, instruction, "single-step", return_safe=True)


@pytest.mark.parametrize(
    ("code", "delta"),
    [
        pytest.param(NOP5 + PUSH_RBP, 0, id="first"),
        pytest.param(ENDBR + NOP5 + PUSH_RBP, 4, id="behind-endbr64"),
        pytest.param("90" + NOP5, 1, id="behind-nop"),
        pytest.param("31c0" + NOP5 + PUSH_RBP, 2, id="behind-xor"),
    ],
)
def test_prefers_the_five_byte_nop_where_the_kernel_optimises_it(code: str, delta: int) -> None:
    assert choose(code) == ProbePoint(delta, "nop5", "nop5", return_safe=True)


def test_five_byte_nop_is_stepped_over_on_older_kernels() -> None:
    assert choose(NOP5 + PUSH_RBP, OLD) == ProbePoint(5, "push rbp", "emulated", return_safe=True)
    assert choose(NOP5 + SUB_RSP, OLD) == ProbePoint(0, "nop5", "single-step", return_safe=True)


@pytest.mark.parametrize(("address", "cost"), [(4091, "nop5"), (4092, "emulated"), (0x7000 - 1, "emulated")])
def test_five_byte_nop_across_two_pages_is_only_emulated(address: int, cost: str) -> None:
    assert choose(NOP5, address=address).cost == cost


@pytest.mark.parametrize("size", range(1, 9))
def test_long_nops_are_emulated_since_6_18(size: int) -> None:
    nops = [
        "90",
        "6690",
        "0f1f00",
        "0f1f4000",
        "0f1f440000",
        "660f1f440000",
        "0f1f8000000000",
        "0f1f840000000000",
    ]
    code = nops[size - 1] + SUB_RSP
    assert choose(code, address=4095).cost == "emulated"
    assert choose(code, OLD).cost == ("emulated" if size == 1 else "single-step")


def test_two_byte_nop_is_avoided_where_it_cannot_be_probed() -> None:
    assert choose("6690" + SUB_RSP, (6, 2)).delta == 0
    assert choose("6690" + SUB_RSP, (6, 1)) == ProbePoint(2, "sub rsp, 8", "single-step", return_safe=True)


@pytest.mark.parametrize(
    "loop",
    [
        # f: mov r8, rcx; L: push rbp; pop rbp; dec rdi; jne L
        pytest.param("4989c8" + "55" + "5d" + "48ffcf" + "75f9", id="to-the-candidate"),
        # f: mov r8, rcx; L: xor eax, eax; push rbp; pop rbp; dec rdi; jne L
        pytest.param("4989c8" + "31c0" + "55" + "5d" + "48ffcf" + "75f7", id="before-the-candidate"),
        # f: mov r8, rcx; L: push rbp; pop rbp; nop x 130; jmp L
        pytest.param("4989c8" + "55" + "5d" + "90" * 130 + "e977ffffff", id="from-far"),
    ],
)
def test_stays_out_of_a_loop_that_begins_in_the_prologue(loop: str) -> None:
    assert choose(loop) == ProbePoint(0, "mov r8, rcx", "single-step", return_safe=True)


def test_a_loop_right_behind_endbr64_leaves_only_endbr64() -> None:
    # f: endbr64; L: dec rdi; jne L
    assert choose(ENDBR + "48ffcf" + "75fb") == ProbePoint(0, "endbr64", "single-step", return_safe=True)


def test_a_loop_further_on_or_to_the_entry_does_no_harm() -> None:
    # f: xor eax, eax; push rbp; L: dec rdi; jne L
    assert choose("31c0" + "55" + "48ffcf" + "75fb").delta == 2
    # f: xor eax, eax; push rbp; pop rbp; jmp f: each turn is a call of its own
    assert choose("31c0" + "55" + "5d" + "ebfa").delta == 2


def test_bytes_that_only_look_like_a_jump_do_no_harm() -> None:
    # f: xor eax, eax; push rbp; mov eax, ...: the bytes eb fb (eb fc) within it would jump to the push
    assert choose("31c0" + "55" + "b800ebfb00" + "5dc3").delta == 2
    assert choose("31c0" + "55" + "b8ebfc0000" + "5dc3").delta == 2
    # f: xor eax, eax; push rbp; dec rdi; bnd jne f+2: a jump with a prefix does
    assert choose("31c0" + "55" + "48ffcf" + "f275f9").delta == 0


def test_entry_only_reaches_behind_the_stack_adjustment() -> None:
    code = SUB_RSP + "31c0" + PUSH_RBP
    assert choose(code, entry_only=True) == ProbePoint(6, "push rbp", "emulated", return_safe=False)
    assert choose(PUSH_RBP, entry_only=True).return_safe
    assert choose(SUB_RSP + RET, entry_only=True) == ProbePoint(
        0, "sub rsp, 8", "single-step", return_safe=True
    )


def test_entry_only_never_takes_a_nop5_behind_the_use_of_the_stack() -> None:
    assert choose(SUB_RSP + NOP5 + PUSH_RBP, entry_only=True).instruction == "push rbp"


STP = 0xA9BF7BFD  # stp x29, x30, [sp, #-16]!
ADRP = 0x90000000
BTI_C = 0xD503245F
NOP = 0xD503201F
PACIASP = 0xD503233F


@pytest.mark.parametrize(
    ("words", "delta", "instruction", "cost"),
    [
        pytest.param((BTI_C, STP), 4, "stp x29, x30, [sp, #-0x10]!", "single-step", id="bti-stp"),
        pytest.param((PACIASP, STP, ADRP), 0, "paciasp", "single-step", id="no-walk-past-signing"),
        pytest.param((NOP, STP), 0, "nop", "emulated", id="nop"),
        pytest.param((0xAA0003E8, ADRP), 4, "adrp", "emulated", id="behind-mov"),
        pytest.param((0x10000000, STP), 0, "adr", "emulated", id="adr"),
        pytest.param((0xB4000040,), 0, "cbz", "emulated", id="cbz"),
        pytest.param((0x36000040,), 0, "tbz", "emulated", id="tbz"),
        pytest.param((0xF100001F, 0x54000040), 4, "b.cond", "emulated", id="behind-cmp"),
        pytest.param((0x94000001,), 0, "b", "emulated", id="bl"),
        pytest.param((0xD65F03C0,), 0, "br", "emulated", id="ret"),
        pytest.param(
            (0xF90007E0, ADRP), 0, "str x0, [sp, #8]", "single-step", id="no-walk-past-store-to-stack"
        ),
        pytest.param((0xAA1E03E0, ADRP), 0, "mov x0, x30", "single-step", id="no-walk-past-use-of-lr"),
        pytest.param((0xC85F7C01, ADRP), 0, "ldxr x1, [x0]", "single-step", id="no-walk-past-exclusive"),
        pytest.param((0x58000040, STP), 4, "stp x29, x30, [sp, #-0x10]!", "single-step", id="not-at-literal"),
    ],
)
def test_arm64(words: tuple[int, ...], delta: int, instruction: str, cost: str) -> None:
    point = choose_arm64(*words)
    assert (point.delta, point.instruction, point.cost) == (delta, instruction, cost)
    assert point.return_safe


def test_arm64_nop_is_emulated_since_6_13() -> None:
    assert choose_arm64(NOP, STP, kernel=(6, 12)).cost == "single-step"
    assert choose_arm64(NOP, STP, kernel=(6, 13)).cost == "emulated"


def test_arm64_stays_out_of_loops() -> None:
    # bti c; L: subs x0, x0, #1; adrp x0, .; b.ne L
    assert choose_arm64(BTI_C, 0xF1000400, ADRP, 0x54FFFFC1).delta == 0
    # mov x8, x0; adrp x0, .; L: subs x0, x0, #1; b.ne L
    assert choose_arm64(0xAA0003E8, ADRP, 0xF1000400, 0x54FFFFE1).delta == 4


def test_arm64_entry_only_reaches_behind_the_frame() -> None:
    assert choose_arm64(PACIASP, STP, ADRP, entry_only=True) == ProbePoint(
        8, "adrp", "emulated", return_safe=False
    )


def test_nothing_to_choose_from() -> None:
    with pytest.raises(ValueError, match="no code"):
        choose_probe_point(b"", "x86_64")
    unknown: Architecture = "riscv64"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="riscv64"):
        choose_probe_point(b"\x55", unknown)


def test_never_fails_on_any_bytes() -> None:
    for seed in range(256):
        code = bytes((seed * 7 + n * (seed | 1) * 31 + (n * n)) & 0xFF for n in range(64))
        for length in (1, 3, 4, 15, 64):
            for architecture in ARCHITECTURES:
                point = choose_probe_point(code[:length], architecture, kernel=NEW)
                assert 0 <= point.delta <= 32


def test_kernel_version_is_read() -> None:
    assert running_kernel() > (3, 0)


def test_the_common_case_does_without_the_disassembler() -> None:
    program = (
        "import sys; from quietcore.probes.prologue import choose_probe_point as choose;"
        "assert choose(bytes.fromhex('f30f1efa554889e54157') + bytes(54), 'x86_64').delta == 4;"
        "assert 'capstone' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})

"""Functions in ELF files that belong to somebody else: every read is bounded, nothing is mapped."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import struct
from collections.abc import Collection, Iterator
from typing import Any

_MAX_READS = 100_000  # a fifth of a second; libcudart takes 2,600
_MAX_TABLE = 256 << 20
_STT_FUNC = 2


def exported_functions(elf: Any, names: list[str]) -> dict[str, tuple[int, int]]:
    """Look functions up in the dynamic symbols, through their hash table: name to (virtual address, size)."""
    from elftools.elf.hash import ELFHashTable, GNUHashTable

    dynamic = next(elf.iter_segments("PT_DYNAMIC"), None)
    if dynamic is None:
        return {}
    _, gnu = dynamic.get_table_offset("DT_GNU_HASH")
    _, old = dynamic.get_table_offset("DT_HASH")
    if gnu is not None:
        table: Any = GNUHashTable(elf, gnu, dynamic)
    elif old is not None:
        make: Any = ELFHashTable
        try:
            table = make(elf, old, None, dynamic)
        except TypeError:  # pyelftools before 0.33 takes no size
            table = make(elf, old, dynamic)
    else:
        return {}
    functions = {}
    for name in names:
        symbol = table.get_symbol(name)
        if symbol and symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["type"] == "STT_FUNC":
            functions[name] = (symbol["st_value"], symbol["st_size"])
    return functions


def local_functions(fd: int, names: Collection[str]) -> dict[str, tuple[int, int]]:
    """Look functions up in .symtab: name to (virtual address, size).

    Written out because a sweep asks this of every file of every process, and .symtab has no hash table: its
    strings are searched first, which settles nearly every file.
    """
    header = os.pread(fd, 64, 0)
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
        return {}
    (section_offset,) = struct.unpack_from("<Q", header, 40)
    entry_size, count = struct.unpack_from("<HH", header, 58)
    raw = os.pread(fd, 64 * count, section_offset) if entry_size == 64 else b""
    sections = [struct.unpack_from("<I16xQQI", raw, at + 4) for at in range(0, len(raw) - 63, 64)]
    symbols = next((section for section in sections if section[0] == 2), None)
    if symbols is None or symbols[3] >= len(sections):
        return {}
    _, offset, size, link = symbols
    _, strings_offset, strings_size, _ = sections[link]
    if max(size, strings_size) > _MAX_TABLE:
        return {}

    pattern = re.compile(b"(%s)\0" % "|".join(sorted(names, key=len, reverse=True)).encode())
    wanted: dict[int, str] = {}
    overlap = 128  # longer than any name
    for start, chunk in _chunks(fd, strings_offset, strings_size, overlap):
        wanted.update((start + match.start(), match[1].decode()) for match in pattern.finditer(chunk))
        if len(wanted) > 1000:  # crafted
            return {}
    functions: dict[str, tuple[int, int]] = {}
    for _, chunk in _chunks(fd, offset, size - size % 24, 0) if wanted else ():
        whole = chunk[: len(chunk) - len(chunk) % 24]
        for index, name_at in enumerate(memoryview(whole).cast("I")[::6]):
            if name_at in wanted:
                info, _, section, value, length = struct.unpack_from("<BBHQQ", whole, 24 * index + 4)
                if info & 15 == _STT_FUNC and section:
                    functions.setdefault(wanted[name_at], (value, length))
    return functions


def _chunks(fd: int, offset: int, size: int, overlap: int) -> Iterator[tuple[int, bytes]]:
    step = 24 << 15
    for start in range(0, size, step):
        chunk = os.pread(fd, min(step + overlap, size - start), offset + start)
        if not chunk:
            return
        yield start, chunk


class BoundedFile(io.BufferedReader):
    """A regular file that ends the parsing of tables that lead nowhere, as a crafted library may have.

    Raises ValueError then.
    """

    reads = 0

    def __init__(self, path: str) -> None:
        # Opening a device may do something; a pipe put there since must not block.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        super().__init__(io.FileIO(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)))

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if size is None or not 0 <= size <= _MAX_TABLE or self.reads > _MAX_READS:
            raise ValueError("its tables are too large")
        return super().read(size)

"""Files that hold pages: made so that none can be slipped in, opened so that no reader can be fooled."""

from __future__ import annotations

import contextlib
import enum
import mmap
import os
import stat
import struct
from collections.abc import Collection
from pathlib import Path

MAGIC = b"QCPAGE\r\n"
HEADER = struct.Struct("<8sHHI")  # magic, kind, version, size of the page
HEADER_SIZE = 64


class Kind(enum.IntEnum):
    """What a page holds."""

    ENGINE = 1
    FEEDBACK = 2


def create_page(path: Path, kind: Kind, version: int, size: int) -> mmap.mmap:
    """Make a page of zeros below its header and put it in place at once; world-readable, ours to write.

    A file of that name is replaced, never written to: it may be a link, or another's. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o644)
    try:
        os.fchmod(descriptor, 0o644)
        # Not a hole: a full file system must fail here, not as SIGBUS in the engine's step.
        os.posix_fallocate(descriptor, 0, size)
        page = mmap.mmap(descriptor, size)
        try:
            page[: HEADER.size] = HEADER.pack(MAGIC, kind, version, size)
            os.rename(temporary, path)
        except BaseException:
            page.close()
            raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return page


def open_page(path: Path, size: int, owners: Collection[int]) -> int | None:
    """A descriptor of another's page; ``None`` if there is none that may be read.

    It must be a plain file of exactly this size, of one of these users, which nobody else may write and that
    has no second name. The last component may be no link; it never blocks on a pipe or a device.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return None
    about = os.fstat(descriptor)
    if (
        stat.S_ISREG(about.st_mode)
        and about.st_size == size
        and about.st_uid in owners
        and about.st_nlink == 1
        and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        return descriptor
    os.close(descriptor)
    return None


def has_header(page: bytes | mmap.mmap, kind: Kind, version: int, size: int) -> bool:
    """Whether it begins as a page of this kind, version and size does."""
    return page[: HEADER.size] == HEADER.pack(MAGIC, kind, version, size)

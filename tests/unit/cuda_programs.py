"""Libraries like CUDA's, compiled here, and processes that use them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from quietcore.probes.cuda_libs import CudaLibrary, LibraryKind

DRIVER = """
int cuLaunchKernel(int x) { return x + 1; }
int cuLaunchKernel_ptsz(int x) __attribute__((alias("cuLaunchKernel")));
int cuLaunchKernelEx(int x) { return x + 2; }
int cuGraphLaunch(int x) { return x + 3; }
int cuStreamSynchronize(int x) { return x + 4; }
int cuMemcpyHtoDAsync_v2(int x) { return x + 5; }
int cuMemFree_v2(int x) { return x + 6; }
int cuUnrelated(int x) { return x + 7; }
"""
RUNTIME = """
int cudaLaunchKernel(int x) { return x + 1; }
int cudaMemcpyAsync(int x) { return x + 2; }
"""
STATIC_PROGRAM = """
#include <stdio.h>
static int __attribute__((noinline)) cudaLaunchKernel(int x) { return x + 1; }
int __attribute__((noinline)) cudaMemcpyAsync(int x) { return x + 2; }
int main(int argc, char **argv) {
    printf("%p %p\\n", (void *)cudaLaunchKernel, (void *)cudaMemcpyAsync);
    fflush(stdout);
    getchar();
    return cudaLaunchKernel(argc) + cudaMemcpyAsync(argc) > 1000;
}
"""
LOADER = """
import ctypes, sys
libraries = [ctypes.CDLL(path) for path in sys.argv[1:]]
print("ready", flush=True)
sys.stdin.read(1)
"""

Build = Callable[..., Path]


@contextlib.contextmanager
def running(arguments: Sequence[str | Path]) -> Iterator[tuple[int, str]]:
    """Run a program until its first line of output; it ends when its input does."""
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.pid, process.stdout.readline()
        finally:
            process.kill()


@contextlib.contextmanager
def loading(*libraries: Path) -> Iterator[int]:
    with running([sys.executable, "-S", "-c", LOADER, *libraries]) as (pid, line):
        assert line == "ready\n"
        yield pid


def library_at(path: Path, kind: LibraryKind = "driver") -> CudaLibrary:
    status = path.stat()
    return CudaLibrary(
        status.st_dev, status.st_ino, kind, str(path), str(path), version="", primary=True, pid=os.getpid()
    )


def identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino

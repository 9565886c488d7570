"""The functions of CUDA that are probed."""

from __future__ import annotations

import re
from pathlib import Path

from quietcore.probes import cuda_libs
from quietcore.probes.cuda_libs import API_CLASSES, API_SYMBOLS


def test_ids_never_change() -> None:
    assert {name: api.api_id for name, api in API_SYMBOLS.items()} == {
        "cuLaunchKernel": 1,
        "cuLaunchKernel_ptsz": 2,
        "cuLaunchKernelEx": 3,
        "cuLaunchKernelEx_ptsz": 4,
        "cuLaunchCooperativeKernel": 5,
        "cuLaunchCooperativeKernel_ptsz": 6,
        "cuGraphLaunch": 7,
        "cuGraphLaunch_ptsz": 8,
        "cuStreamSynchronize": 9,
        "cuStreamSynchronize_ptsz": 10,
        "cuEventSynchronize": 11,
        "cuCtxSynchronize": 13,
        "cuCtxSynchronize_v2": 14,
        "cuMemcpyAsync": 15,
        "cuMemcpyAsync_ptsz": 16,
        "cuMemcpyHtoDAsync_v2": 17,
        "cuMemcpyHtoDAsync_v2_ptsz": 18,
        "cuMemcpyDtoHAsync_v2": 19,
        "cuMemcpyDtoHAsync_v2_ptsz": 20,
        "cuMemAlloc_v2": 21,
        "cuMemFree_v2": 22,
        "cudaLaunchKernel": 32,
        "cudaLaunchKernel_ptsz": 33,
        "cudaLaunchKernelExC": 34,
        "cudaLaunchKernelExC_ptsz": 35,
        "cudaLaunchCooperativeKernel": 36,
        "cudaLaunchCooperativeKernel_ptsz": 37,
        "cudaGraphLaunch": 38,
        "cudaGraphLaunch_ptsz": 39,
        "cudaStreamSynchronize": 40,
        "cudaStreamSynchronize_ptsz": 41,
        "cudaEventSynchronize": 42,
        "cudaDeviceSynchronize": 44,
        "cudaMemcpyAsync": 45,
        "cudaMemcpyAsync_ptsz": 46,
    }


def test_symbols_name_their_api_and_layer() -> None:
    assert API_SYMBOLS["cuMemcpyHtoDAsync_v2_ptsz"] == (18, "cuMemcpyHtoDAsync", "copy", "driver")
    assert API_SYMBOLS["cudaGraphLaunch"] == (38, "cudaGraphLaunch", "graph_launch", "runtime")
    assert {api.api_class for api in API_SYMBOLS.values()} == set(API_CLASSES)


def test_classes_are_in_the_order_of_the_bpf_program() -> None:
    header = (Path(cuda_libs.__file__).parent / "bpf" / "layout.h").read_text()
    found = re.search(r"enum api_class \{(.*?)\}", header, re.DOTALL)
    assert found
    numbers = {name.lower(): int(value) for name, value in re.findall(r"API_(\w+) = (\d+)", found[1])}
    assert numbers == {name: number for number, name in enumerate(API_CLASSES)}

"""The text that bcc compiles has a program for every probe that may be attached."""

from __future__ import annotations

import re

from quietcore.probes.backend import CALIBRATION_ID
from quietcore.probes.bcc_toolchain import source_text
from quietcore.probes.cuda_libs import API_CLASSES, API_SYMBOLS


def test_every_api_has_its_entry_and_calibration_one_of_its_own() -> None:
    entries = re.findall(r"^CUDA_ENTRY\((\d+), (0x[0-9a-f]+)\)$", source_text([]), re.MULTILINE)
    cookies = {int(api_id): int(cookie, 16) for api_id, cookie in entries}
    expected = {a.api_id: a.api_id | API_CLASSES.index(a.api_class) << 8 for a in API_SYMBOLS.values()}
    assert CALIBRATION_ID not in expected
    assert cookies == expected | {CALIBRATION_ID: CALIBRATION_ID}

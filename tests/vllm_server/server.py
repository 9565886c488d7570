"""vLLM's server with its engine on one CPU and all else on another."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.cpu_cgroup import CpuCgroup, controller_root, cpu_cgroup
from tests.vllm_server.affinity import misplaced_threads, online
from tests.vllm_server.guard import descendants
from tests.vllm_server.guarded import Guarded, VllmError, tail
from tests.vllm_server.load import LoadHandle
from tests.vllm_server.metrics import read_metrics

MODEL_NAME = "tiny"
MAX_MODEL_LEN = 2048
ENGINE_COMM = "VLLM::EngineCor"  # the kernel keeps 15 characters of "VLLM::EngineCore"


def _comm(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return ""


class VllmServer:
    """vLLM's OpenAI server with a tiny random model; a context manager.

    Once entered, ``pid`` is the API server and ``engine_pid`` the engine core (comm ``VLLM::EngineCor``).
    All threads of the engine are bound to ``engine_cpu``, all others and the load to ``client_cpu``.
    Where the machine has the cpu controller, the engine is alone in ``engine_group``, as in a container.
    """

    def __init__(
        self,
        venv: Path,
        work_dir: Path,
        engine_cpu: int,
        client_cpu: int,
        port: int | None = None,
        extra_args: Sequence[str] = (),
        *,
        max_num_seqs: int = 64,
        stream_interval: int = 1,
        extra_env: Mapping[str, str] | None = None,
        ready_timeout_s: float = 240.0,
    ) -> None:
        self.venv = Path(os.path.abspath(venv))
        self.work_dir = Path(work_dir).resolve()
        self.engine_cpu = engine_cpu
        self.client_cpu = client_cpu
        self.port = port if port is not None else _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = self.work_dir / "server.log"
        self.model_dir = self.work_dir / "model"
        self.pid = 0
        self.engine_pid = 0
        self.seconds_to_ready = 0.0
        self.engine_group: CpuCgroup | None = None
        self._extra_args = tuple(extra_args)
        self._extra_env = dict(extra_env or {})
        self._max_num_seqs = max_num_seqs
        self._stream_interval = stream_interval
        self._ready_timeout_s = ready_timeout_s
        self._guarded: Guarded | None = None
        self._exits = contextlib.ExitStack()
        self._loads: list[LoadHandle] = []

    def __enter__(self) -> VllmServer:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start, wait until /health answers, pin every thread."""
        python = self.venv / "bin" / "python"
        if not os.access(python, os.X_OK):
            raise VllmError(f"{python} is missing: run tests/vllm_server/install.sh {self.venv}")
        for cpu in (self.engine_cpu, self.client_cpu):
            if not online(cpu):
                raise VllmError(f"CPU {cpu} is not online")
        self.work_dir.mkdir(parents=True, exist_ok=True)
        self._make_model(python)
        command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(self.model_dir), "--served-model-name", MODEL_NAME]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--disable-uvicorn-access-log"]
        command += ["--load-format", "dummy", "--enforce-eager", "--max-model-len", str(MAX_MODEL_LEN)]
        # bfloat16 takes AMX where the CPU claims it; some virtual machines claim it and then trap on it.
        command += ["--dtype", "float32"]
        command += ["--max-num-seqs", str(self._max_num_seqs)]
        command += ["--stream-interval", str(self._stream_interval)]
        # Equal loads must cost the same the second time.
        command += ["--no-enable-prefix-caching", *self._extra_args]
        begin = time.monotonic()
        self._guarded = Guarded(command, self._env(), self._cpus(), self.log_path, grace=10.0)
        self.pid = self._guarded.pid
        self._wait_ready(begin + self._ready_timeout_s)
        self.seconds_to_ready = time.monotonic() - begin
        engines = [pid for pid in descendants(self.pid) if _comm(pid) == ENGINE_COMM]
        if len(engines) != 1:
            raise VllmError(f"{len(engines)} processes are called {ENGINE_COMM}, expected one")
        self.engine_pid = engines[0]
        # A group with threads on both CPUs, as the session's autogroup is, has its weight on this CPU
        # changed so often that its vruntime falls behind: others here then wait for minutes (Linux 6.18).
        if controller_root() is not None:
            self.engine_group = self._exits.enter_context(cpu_cgroup())
            self.engine_group.join(self.engine_pid)
        self.pin()

    def stop(self) -> None:
        """End loads and server; nothing of them stays."""
        for load in self._loads:
            load.abort()
        self._loads.clear()
        if self._guarded is not None:
            self._guarded.stop()
        self._exits.close()

    def running(self) -> bool:
        """Whether the API server lives; without it vLLM serves nothing."""
        return self._guarded is not None and self._guarded.running()

    def pin(self) -> None:
        """Put each thread on its CPU, until a pass over all of them finds none elsewhere.

        Threads inherit the mask, so after such a pass new ones are right as well.
        """
        for _ in range(100):
            if not self.misplaced(correct=True):
                return
        raise VllmError("threads of the server keep leaving their CPU")

    def misplaced(self, *, correct: bool = False) -> dict[int, set[int]]:
        """Threads that may run elsewhere than they should: tid to CPUs.  With ``correct``, move them."""
        return misplaced_threads(self.pid, self.client_cpu, self.engine_pid, self.engine_cpu, correct=correct)

    def metrics(self) -> dict[str, float]:
        """The counters and sums of /metrics, added up over their labels (no histogram buckets)."""
        return read_metrics(self.url)

    def load(
        self,
        duration_s: float | None = None,
        request_rate: float = math.inf,
        *,
        max_concurrency: int = 32,
        input_len: int = 64,
        output_len: int = 512,
        num_prompts: int | None = None,
        seed: int = 0,
        extra_args: Sequence[str] = (),
    ) -> LoadHandle:
        """Start ``vllm bench serve`` on ``client_cpu`` and return when tokens flow (some 10 s later).

        With the default rate it is a closed loop of ``max_concurrency`` requests that keeps the engine
        busy; lengths vary by half around ``output_len``, or all would end at once.  Without ``num_prompts``
        there are enough for ``duration_s`` (or for about an hour) and the load is cut off; with it, or with a
        finite ``request_rate`` and ``duration_s``, the benchmark ends by itself and the figures are its own.
        One load at a time.
        """
        if not self.running():
            raise VllmError("the server is not running")
        if any(load.running() for load in self._loads):
            raise VllmError("a load is running already")
        if num_prompts is None:
            if duration_s is not None and math.isfinite(request_rate):
                num_prompts = max(1, round(duration_s * request_rate))
            else:
                # 10,000 tokens/s is far above what this model reaches on one core.
                seconds = 3600.0 if duration_s is None else duration_s
                num_prompts = min(40_000, max_concurrency + math.ceil(seconds * 10_000 / output_len))
        number = len(self._loads)
        result_path = self.work_dir / f"load{number}.json"
        result_path.unlink(missing_ok=True)
        bin_dir = self.venv / "bin"
        command = [str(bin_dir / "python"), str(bin_dir / "vllm"), "bench", "serve", "--backend", "openai"]
        command += ["--base-url", self.url, "--model", MODEL_NAME, "--served-model-name", MODEL_NAME]
        command += ["--tokenizer", str(self.model_dir), "--dataset-name", "random", "--seed", str(seed)]
        command += ["--random-input-len", str(input_len), "--random-output-len", str(output_len)]
        command += ["--random-range-ratio", "0.5", "--ignore-eos", "--temperature", "0"]
        command += ["--num-prompts", str(num_prompts), "--max-concurrency", str(max_concurrency)]
        command += ["--request-rate", str(request_rate), "--disable-tqdm", "--save-result"]
        command += ["--result-dir", str(self.work_dir), "--result-filename", result_path.name, *extra_args]
        log_path = self.work_dir / f"load{number}.log"
        guarded = Guarded(command, self._env(), [self.client_cpu], log_path, grace=0.0)
        handle = LoadHandle(self, guarded, result_path, duration_s)
        self._loads.append(handle)
        try:
            handle.wait_busy()
            self.pin()
        except BaseException:
            guarded.stop()
            raise
        return handle

    def log_tail(self, lines: int = 15) -> str:
        return tail(self.log_path, lines)

    def _cpus(self) -> list[int]:
        return sorted({self.engine_cpu, self.client_cpu})

    def _env(self) -> dict[str, str]:
        cache = self.work_dir / "cache"
        return {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": str(self.engine_cpu),
            "OMP_NUM_THREADS": "1",
            # The model runs in the engine's process: the CPU build changes "uni" into "mp" unless this is 0.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_HOME": str(cache / "hf"),
            "VLLM_CACHE_ROOT": str(cache / "vllm"),
            "VLLM_CONFIG_ROOT": str(cache / "config"),
            "XDG_CACHE_HOME": str(cache),
            "XDG_CONFIG_HOME": str(cache / "config"),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "PYTHONUNBUFFERED": "1",
            **self._extra_env,
        }

    def _make_model(self, python: Path) -> None:
        script = Path(__file__).resolve().with_name("model.py")
        command = [str(python), str(script), str(self.model_dir)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise VllmError(f"model.py failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")

    def _wait_ready(self, deadline: float) -> None:
        assert self._guarded is not None
        while True:
            if not self._guarded.running():
                code = self._guarded.returncode()
                raise VllmError(f"vLLM ended with {code} before it was ready:\n{self.log_tail()}")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return
            if time.monotonic() > deadline:
                raise VllmError(f"vLLM was not ready after {self._ready_timeout_s:.0f} s:\n{self.log_tail()}")
            time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

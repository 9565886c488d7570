"""A real vLLM server on one CPU, its clients on another, and a load that keeps it busy.

    with VllmServer(Path("/opt/venv"), Path("/tmp/work"), engine_cpu=1, client_cpu=0) as server:
        with server.load() as load:
            ...                      # measure server.engine_pid here
            result = load.stop()     # output tokens per second and latencies

The environment comes from ``install.sh``, the model from ``model.py``.  The engine runs the model in its own
process (vLLM's default on one GPU; the CPU build would start a worker process and spin in both), with one
OpenMP thread.  ``python serve.py run --help`` does the same from a shell.

Server and load each run under a small guard process, which kills all that they started when this process
stops it or dies, however it dies.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.vllm_server.guarded import VllmError
from tests.vllm_server.load import LoadHandle, LoadResult
from tests.vllm_server.metrics import TOKENS
from tests.vllm_server.server import ENGINE_COMM, MAX_MODEL_LEN, MODEL_NAME, VllmServer

__all__ = [
    "ENGINE_COMM",
    "MAX_MODEL_LEN",
    "MODEL_NAME",
    "TOKENS",
    "LoadHandle",
    "LoadResult",
    "VllmError",
    "VllmServer",
]


@contextlib.contextmanager
def _work_dir(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="quietcore-vllm-", ignore_cleanup_errors=True) as made:
        yield Path(made)


def _on_term(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(args: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, _on_term)
    signal.signal(signal.SIGHUP, _on_term)
    with _work_dir(args.work_dir) as work_dir:
        server = VllmServer(args.venv, work_dir, args.engine_cpu, args.client_cpu, args.port)
        with server:
            print(
                f"ready engine_pid={server.engine_pid} api_pid={server.pid} url={server.url} "
                f"log={server.log_path} seconds={server.seconds_to_ready:.1f}",
                flush=True,
            )
            if not args.load:
                with contextlib.suppress(KeyboardInterrupt):
                    time.sleep(args.seconds if args.seconds is not None else 10**8)
                return 0
            load = server.load(args.seconds, args.request_rate, max_concurrency=args.max_concurrency)
            print(f"loaded bench_pid={load.pid}", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                load.wait()
            result = asdict(load.stop())
            result.pop("bench")
            words = (f"{k}={v:.1f}" if isinstance(v, float) else f"{k}={v}" for k, v in result.items())
            print(" ".join(words), flush=True)
    return 0


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="A real vLLM server on one CPU, its clients on another.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="start the server, print its pids, keep it until the time is over")
    run.add_argument("--venv", type=Path, required=True, help="made by install.sh")
    run.add_argument("--engine-cpu", type=int, required=True)
    run.add_argument("--client-cpu", type=int, required=True)
    run.add_argument("--port", type=int, help="default: a free one")
    run.add_argument("--work-dir", type=Path, help="for model and logs; default: a temporary one")
    run.add_argument("--load", action="store_true", help="keep the engine busy with vllm bench serve")
    run.add_argument("--seconds", type=float, help="how long (under load); default: until a signal")
    run.add_argument("--request-rate", type=float, default=math.inf, help="default: a closed loop")
    run.add_argument("--max-concurrency", type=int, default=32)
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except VllmError as error:
        print(f"serve.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

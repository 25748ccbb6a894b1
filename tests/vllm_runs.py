"""vLLM as tests run it: small, on a CPU if there is nothing else, in this process or as a server of its own.

`make test-vllm` makes the environment. Import this before vLLM: it reads its environment variables on import.
"""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest


# A gibibyte for keys and values, one thread as in the other tests, and nothing sent to anyone.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
# Room for all prompts of a call: with seeds of requests, the CPU build cannot cut a prompt into parts.
OPTIONS = {"dtype": "float32", "enforce_eager": True, "max_num_batched_tokens": 16384, "disable_log_stats": False}
START_SECONDS = 300

os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})


def require_vllm() -> Any:
    """The module, or the reason why tests are skipped."""
    return pytest.importorskip("vllm", reason="vLLM is not installed: `make test-vllm` makes an environment with it")


@functools.cache
def vllm_generator(model: str, max_model_len: int = 128) -> Any:
    """The engine in this process over a model. All are kept: one that goes takes the process group of the others."""
    from trl_prl.generation.vllm_engine import VLLMGenerator

    return VLLMGenerator(model, max_model_len=max_model_len, block_size=32, **OPTIONS)


class VLLMServer:
    """`vllm serve` in a process of its own, which can be killed and started again at the same address.

    Args:
        model (`str`):
            Path of the model.
        folder (`Path`):
            Where its log goes.
        *options (`str`):
            Further options of the command.
    """

    def __init__(self, model: str, folder: Path, *options: str) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"
        self.log = folder / "vllm.log"
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, "--host", "127.0.0.1"]
        self.command = [*command, "--port", str(port), "--dtype", "float32", "--enforce-eager", *options]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process and wait until it answers."""
        environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                urlopen(f"{self.root}/health", timeout=5).read()
                return
            except OSError:
                time.sleep(0.5)
        self.kill()
        pytest.fail("vLLM's server did not start: " + self.log.read_text(errors="replace")[-3000:])

    def kill(self) -> None:
        """Kill the server and the processes of its engine at once."""
        if self.process is not None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None


@contextmanager
def vllm_server(model: str, folder: Path, *options: str) -> Iterator[VLLMServer]:
    """A server that runs until the end of the block."""
    server = VLLMServer(model, folder, *options)
    try:
        server.start()
        yield server
    finally:
        server.kill()

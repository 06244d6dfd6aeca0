"""`pard2 train` in processes of its own, forked from one that has imported everything.

Importing torch and transformers takes longer than a tiny run; a fork of a process that has them starts at
once. Several processes are started and watched by the agent that `torchrun` is a command line of.
"""

import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["accelerate", "pard2.cli.commands", "pard2.train.loop"])


class Started:
    """A run that goes on while the test does something else.

    pid: of its process, or of the agent of several.
    """

    def __init__(self, run: Path, count: int) -> None:
        self._logs = run.with_suffix(".out"), run.with_suffix(".err")
        target = _train if count == 1 else _launch
        self._process: BaseProcess = _CONTEXT.Process(target=_into, args=(*map(str, self._logs), target, str(run)), daemon=False)
        self._process.start()
        self.pid = self._process.pid

    def workers(self) -> list[int]:
        """Processes that the agent has started, in order."""
        return [int(pid) for pid in subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True).stdout.split()]

    def wait_for(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + 200
        while not happened():
            assert self._process.is_alive() and time.monotonic() < deadline, self._logs[1].read_text()[-3000:]
            time.sleep(0.01)

    def wait(self) -> tuple[int | None, str, str]:
        """Its exit code, standard output and standard error."""
        self._process.join(200)
        assert not self._process.is_alive()
        out, err = (path.read_text() for path in self._logs)
        return self._process.exitcode, out, err

    def finish(self) -> str:
        """Its standard output; it must end well."""
        code, out, err = self.wait()
        assert code == 0, err[-3000:]
        return out


def _into(out: str, err: str, run: Callable[[str], None], config: str) -> None:
    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    run(config)


def _train(config: str) -> None:
    from pard2.cli.main import main

    torch.set_num_threads(1)
    try:
        main(["train", config])
    except SystemExit as ending:
        if ending.code:
            raise


def _launch(config: str) -> None:
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        start_method="fork",
        monitor_interval=0.1,
        max_restarts=0,
    )
    elastic_launch(launch, _train)(config)

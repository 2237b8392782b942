"""`lifecycle` and `python` for the shell of tests/docs: forked from a process that has imported everything already.

    python -m tests.docs.server SOCKET

A command connects with its words, its folder and its three streams, and is answered with the exit code. To the words of
`lifecycle` those are appended that make it small (`small.py`).
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import sys
from typing import Any

import lightning.fabric.utilities.seed  # noqa: F401
import matplotlib.backends.backend_agg  # noqa: F401
import torch._dynamo  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401
from tests.docs.small import small

import lifecycle.run
import lifecycle.runs.results  # noqa: F401

CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    job = {{"words": {words!r} + sys.argv[1:], "cwd": os.getcwd()}}
    socket.send_fds(server, [json.dumps(job).encode()], [0, 1, 2])
    sys.exit(int(server.recv(16) or b"1"))
"""
"""The program of that name in the shell's PATH."""


def become(job: dict[str, Any], streams: list[int]) -> None:
    """Turn this process into the command."""
    os.setsid()
    os.chdir(job["cwd"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    words = job["words"]
    if words[0] != "-m":
        sys.argv[:] = words
        runpy.run_path(words[0], run_name="__main__")
        return
    _, module, *rest = words
    sys.argv[1:] = [*rest, *(small(rest) if module == "lifecycle" else [])]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def answer(connection: socket.socket) -> None:
    """Run what is asked for in a process of its own, and say how it ended."""
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    pid = os.fork()
    if pid == 0:
        connection.close()
        return become(json.loads(message), streams)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    connection.sendall(str(code).encode())
    os._exit(0)


def serve(address: str) -> None:
    """Until it is told to stop."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
        gc.collect()
        gc.freeze()  # the commands share these pages
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return answer(connection)
            connection.close()


if __name__ == "__main__":
    serve(sys.argv[1])

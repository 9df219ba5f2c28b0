"""The command ``wardround`` from a process that has imported everything: a start costs milliseconds, not seconds.

One server waits with the libraries loaded. The command that :func:`install` puts into a folder hands its arguments,
folder, environment and streams to the server, which forks; the fork is the run. It dies when the command is killed.

What differs from a new process: environment variables that are read at start-up (``OMP_NUM_THREADS``) are the server's.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [b" "], [0, 1, 2])
server.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
sys.exit(int(server.recv(8) or b"70"))  # 70: it died of an error of its own
"""


@contextmanager
def install(folder: Path) -> Iterator[None]:
    """Puts the command into a folder; it works while the context is open."""
    address = folder / "socket"
    command = folder / "wardround"
    command.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    command.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        script = [sys.executable, "-I", __file__, str(listener.fileno())]
        server = subprocess.Popen(script, pass_fds=[listener.fileno()], env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            yield
        finally:
            server.kill()
            server.wait()


def serve(listener: socket.socket) -> None:
    """Forks once per command, for ever."""
    import wardround.simulator.reports.run
    import wardround.simulator.run
    import wardround.simulator.sweeps.execution
    import wardround.simulator.table
    import wardround.simulator.verify  # noqa: F401  all are imported to be there when a command comes

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            work(connection)
        connection.close()


def work(connection: socket.socket) -> None:
    """Runs the command that comes through a connection, in place of the command, and ends the process."""
    from wardround.simulator.cli import main

    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    arguments, folder, environment = json.loads(connection.makefile().readline())
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = ["wardround", *arguments]
    threading.Thread(target=die_with, args=(connection,), daemon=True).start()
    try:
        code = main(arguments)
    except SystemExit as error:  # --help, or words that argparse does not know
        code = int(error.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(code).encode())
    os._exit(code)


def die_with(connection: socket.socket) -> None:
    """Waits for the end of the command at the other side, and kills this process as it was killed."""
    connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))

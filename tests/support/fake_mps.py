"""A stand-in for nvidia-cuda-mps-control, for tests on machines without a GPU.

It does what the real one was seen to do: with -f it makes its control pipe and runs in the
foreground with a server as its child; told to quit it ends the server and itself. Both have names
like the real ones, by which they are found.
"""

import sys
from pathlib import Path

SERVER = """#!{python} -IS
import time
while True:
    time.sleep(60)
"""

CONTROL = """#!{python} -IS
import os, signal, subprocess, sys, time
from pathlib import Path

folder = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
assert Path(os.environ["CUDA_MPS_LOG_DIRECTORY"]).is_dir()
if sys.argv[1:] == ["-f"]:
    {begin}
    server = subprocess.Popen(["{server}"])
    (folder / "pid").write_text(str(os.getpid()))
    (folder / "server").write_text(str(server.pid))
    def end(*_):
        server.kill()
        server.wait()
        os._exit(0)
    signal.signal(signal.SIGUSR1, end)
    (folder / "control").touch()
    while True:
        time.sleep(60)
assert sys.stdin.read() == "quit\\n"
{quit}
os.kill(int((folder / "pid").read_text()), signal.SIGUSR1)
"""


def install(folder: Path, begin: str = "pass", quit_: str = "pass") -> None:
    """Write the programs into a folder that is, or will be, on PATH.

    Args:
        folder: where.
        begin: statement at the daemon's start.
        quit_: statement where it is told to quit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    server, control = (folder / f"nvidia-cuda-mps-{kind}" for kind in ("server", "control"))
    server.write_text(SERVER.format(python=sys.executable))
    values = {"python": sys.executable, "server": server, "begin": begin, "quit": quit_}
    control.write_text(CONTROL.format(**values))
    for program in (server, control):
        program.chmod(0o755)

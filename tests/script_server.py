"""Run scripts in forks of a process that has done their imports, which take most of the time of a short run.

Each line on stdin is one request in JSON. {"argv": [...], "cwd": ..., "out": ..., "err": ..., "strict": ..., "env":
{...}, "memory": ..., "largest": ..., "closed": [...]} starts a script; the response is its pid. "memory" limits its
memory, in MB more than the server has, "largest" the bytes of each file that it writes; "closed" names the outputs,
"out" or "err", that are pipes without a reader. {"wait": pid, "seconds": ...} waits; the response is the exit code, or
null if the script is still running. {"used": pid} asks for its processor time in seconds and its peak of memory in
bytes.
"""

import contextlib
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

SLOW_IMPORTS = [
    "arviz",
    "matplotlib.backends.backend_agg",
    "scipy.stats",
    "sklearn.datasets",
    "torch._dynamo",
    "torchvision.datasets",
    "pyrovae.runs.comparison",
    "pyrovae.runs.report",
    "pyrovae.runs.sweep",
]


used = {}  # by process that has ended


def run_script(request):
    """Run the script of a request in this process, a fork, and exit."""
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    files = [os.open(os.devnull, os.O_RDONLY)]
    for name in ("out", "err"):
        if name in request["closed"]:
            files.append(closed_pipe())
        else:
            files.append(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    for number, file in enumerate(files):
        os.dup2(file, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["memory"] is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + request["memory"] * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if request["largest"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest"], request["largest"]))
    if request["strict"]:
        warnings.simplefilter("error")
    sys.argv = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    code = 1
    try:
        with audited(request["env"]):
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


@contextlib.contextmanager
def audited(env):
    """Write what `watched` sees inside into the file AUDIT, if the environment names one."""
    if "AUDIT" not in env:
        yield
        return
    sys.path.insert(1, str(Path(__file__).parent / "hostile"))
    from audit import watched

    with watched(env["AUDIT_ALLOWED"]) as seen:
        try:
            yield
        finally:
            found = list(seen)
    Path(env["AUDIT"]).write_text("\n".join(found))


def closed_pipe():
    """Open a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def wait(pid, seconds):
    """Wait for a process; return its exit code as `subprocess` does, or None after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            used[pid] = usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.005)


def main():
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = wait(request["wait"], request["seconds"])
        elif "used" in request:
            answer = used[request["used"]]
        else:
            answer = os.fork()
            if answer == 0:
                run_script(request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

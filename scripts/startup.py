"""End of a script that is stopped, or fails, while it imports its libraries: no traceback.

Every script imports this module first. `pyrovae.runs.run_script` takes over at its start. Ctrl-C gives exit code 130; a
library that cannot be imported, such as under a limit of memory, one line and exit code 1.
"""

import os
import signal
import sys
from types import TracebackType


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, ImportError | MemoryError | OSError):
        sys.__excepthook__(kind, error, trace)
        return
    reason = " ".join(str(error).split()) or kind.__name__
    script = os.path.basename(sys.argv[0])
    print(f"{script}: error: a library cannot be imported: {reason}; install it, or allow more memory", file=sys.stderr)


sys.excepthook = _report
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if ignored, as behind nohup
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))  # nothing needs cleaning up yet

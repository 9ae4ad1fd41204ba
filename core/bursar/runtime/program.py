"""How a program begins: quietly, whatever happens while it is still being imported."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import NoReturn

#: What a program exits with that was interrupted.
INTERRUPTED = 128 + signal.SIGINT


def run(module: str) -> NoReturn:
    """Import a program's module, and exit as its `main` says.

    Until it is imported an interrupt simply ends the process, as a shell expects of it: there is nothing to put away yet, and the
    traceback of an import helps nobody. Where interrupts are ignored, they stay so.
    """
    # gRPC reads it when it is imported. What it has to say – of each connection that did not come about – is said in our own words.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    handler = signal.getsignal(signal.SIGINT)
    is_ours = handler is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    main = importlib.import_module(module).main
    try:
        if is_ours:
            signal.signal(signal.SIGINT, handler)
        code = main()
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)

"""Keeps the process's signal handlers as they are while the extension is loaded.

libfabric brings libraries along that take SIGINT, SIGSEGV and others for themselves in that moment:
Python's Ctrl-C, and what faulthandler or a framework has set, would be gone.
"""

import contextlib
import ctypes

_SIGNALS = range(1, 32)
_BYTES = 512  # more than a struct sigaction has


@contextlib.contextmanager
def kept():
    libc = ctypes.CDLL(None)
    before = {}
    for number in _SIGNALS:
        action = ctypes.create_string_buffer(_BYTES)
        if libc.sigaction(number, None, action) == 0:
            before[number] = action
    try:
        yield
    finally:
        for number, action in before.items():
            libc.sigaction(number, action, None)

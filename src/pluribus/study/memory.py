"""The most memory that this process has held since a moment: what `peak_memory` of a trial is.

Figures are of the whole process (resident set): the interpreter and the libraries, some 300 MB, are part of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

_OWN = Path("/proc/self")


def forget_peak() -> None:
    """Let the peak begin at what is held now. Only Linux can; elsewhere the peak is of the process's whole life."""
    try:
        (_OWN / "clear_refs").write_text("5", "ascii")
    except OSError:
        return


def peak() -> int | None:
    """Bytes held at the most since `forget_peak`; None where the system does not tell."""
    try:
        lines = (_OWN / "status").read_text("ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024

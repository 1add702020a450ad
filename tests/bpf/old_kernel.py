"""memtrace as on a kernel without uprobe sessions (before 6.13) and without events of single system calls."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tracer.cli.main import main
from tracer.probes import kernel

if __name__ == "__main__":
    kernel.has_uprobe_sessions = lambda: False
    kernel.has_system_call_events = lambda: False
    main()

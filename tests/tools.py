"""Programs of others with which tests open what memtrace writes. scripts/tools fetches them into .tools."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def tools_dir() -> Path:
    """Where scripts/tools puts them; MEMTRACE_TOOLS_DIR moves it."""
    return Path(os.environ.get("MEMTRACE_TOOLS_DIR") or ROOT / ".tools")


def find_tool(name: str) -> Path | None:
    """The program, fetched or installed; None where there is none."""
    fetched = tools_dir() / name
    if os.access(fetched, os.X_OK):
        return fetched
    found = shutil.which(name)
    return Path(found) if found else None


def need_tool(name: str) -> Path:
    """The program; without it the test is skipped."""
    tool = find_tool(name)
    if tool is None:
        pytest.skip(f"{name} is missing: scripts/tools fetches it")
    return tool

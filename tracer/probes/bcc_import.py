"""Finds Debian's bcc module, also for interpreters that do not look into /usr/lib/python3/dist-packages."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from tracer.errors import MissingDependencyError

# bcc's Python part is pure ctypes, so any interpreter can load it from where the distribution keeps it.
DISTRIBUTION_PATHS = (Path("/usr/lib/python3/dist-packages/bcc/__init__.py"),)


def import_bcc() -> ModuleType:
    """Return the module ``bcc``. Raises MissingDependencyError, which names the package to install.

    The name must resolve to the tracer's module: the package of that name on the Python package index is another
    project, recognised by its lack of ``BPF``.
    """
    try:
        module = importlib.import_module("bcc")
        if hasattr(module, "BPF"):
            return module
    except (ImportError, OSError):
        pass  # not there, or its library does not load: the distribution's own says why
    for path in DISTRIBUTION_PATHS:
        if path.exists():
            return _import_from(path)
    raise MissingDependencyError(
        f"bcc's Python module is missing (for {sys.executable})", "install it: sudo apt install python3-bpfcc"
    )


def _import_from(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bcc", path, submodule_search_locations=[str(path.parent)])
    if spec is None or spec.loader is None:
        raise MissingDependencyError(f"bcc's Python module at {path} cannot be loaded", "reinstall python3-bpfcc")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        del sys.modules["bcc"]
        raise MissingDependencyError(
            f"bcc cannot be loaded: {error}", "install it: sudo apt install python3-bpfcc"
        ) from error
    return module

"""Other versions of glibc to run targets under, beside the system's.

MEMTRACE_GLIBCS names directories, separated by colons, that each hold an unpacked package of libc6 (dpkg-deb -x), and
for a glibc older than the one that is compiled with, of libc6-dev too. scripts/bench/glibcs fetches some.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.targets.build import FLAGS, SOURCE_DIR, TARGETS, build

LOADER = "ld-linux-x86-64.so.2"


@dataclass(frozen=True, slots=True)
class Glibc:
    """One version; ``loader`` is its ld.so, None for the system's."""

    name: str
    loader: Path | None = None

    def command(self, target: str, out_dir: Path, *arguments: str | int) -> list[str]:
        """The command line that runs a target under this glibc. Raises MissingCompiler, CalledProcessError."""
        words = [str(argument) for argument in arguments]
        if self.loader is None:
            return [str(build(target, out_dir)), *words]
        libraries = self.loader.parent
        start_files = next(iter(sorted(libraries.parents[1].rglob("Scrt1.o"))), None)
        program = build(target, out_dir)
        if start_files is not None:
            program = _link(target, out_dir / self.name, libraries, start_files.parent)
        return [str(self.loader), "--library-path", str(libraries), str(program), *words]


def system_glibc() -> Glibc:
    """The one that programs here run under anyway."""
    return Glibc("system")


def other_glibcs() -> list[Glibc]:
    """Those that MEMTRACE_GLIBCS names and that have a loader; none where it is not set."""
    directories = [Path(name) for name in os.environ.get("MEMTRACE_GLIBCS", "").split(":") if name]
    found: list[Glibc] = []
    for directory in directories:
        # /lib64 has a link to the loader, which does not lead to it from here.
        loader = next(
            (path for path in sorted(directory.rglob(LOADER)) if path.exists() and path.parent.name != "lib64"), None
        )
        if loader is not None:
            found.append(Glibc(f"{directory.name}-{version_of(loader)}", loader))
    return found


def version_of(loader: Path) -> str:
    """``2.41``, as the library says when it is run."""
    said = subprocess.run([loader, loader.parent / "libc.so.6"], capture_output=True, text=True, check=True).stdout
    return said.splitlines()[0].rstrip(".").rpartition(" ")[2]


def _link(name: str, out_dir: Path, libraries: Path, start_files: Path) -> Path:
    """Link a C target against an older glibc than the compiler's: its own start files and libraries."""
    out_dir.mkdir(parents=True, exist_ok=True)
    program, target = out_dir / name, TARGETS[name]
    made = out_dir / f"{name}.o"
    subprocess.run([target.compiler, *FLAGS, "-c", str(SOURCE_DIR / target.source), "-o", str(made)], check=True)
    begin, end = (_compiler_file(target.compiler, each) for each in ("crtbeginS.o", "crtendS.o"))
    objects = [start_files / "Scrt1.o", start_files / "crti.o", begin, made]
    shared = [
        libraries / "libpthread.so.0",
        libraries / "libc.so.6",
        start_files / "libc_nonshared.a",
        libraries / LOADER,
    ]
    command = [
        target.compiler,
        "-nostdlib",
        "-pie",
        "-o",
        program,
        *objects,
        *shared,
        "-lgcc",
        end,
        start_files / "crtn.o",
    ]
    subprocess.run([str(word) for word in command], check=True)
    return program


def _compiler_file(compiler: str, name: str) -> str:
    said = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return said.stdout.strip()

"""Reading a capture: files of /proc of some machine at some time, for every view that reads a ``ProcSource``.

The archive may come from anywhere. It is never unpacked to disk, nothing in it is trusted, and whatever is wrong with
it is one CaptureError.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tracer.errors import MemtraceError, PrivilegeError, TargetError
from tracer.procfs import capture_format as form
from tracer.procfs.capture_format import CapturedClasses, CapturedProcess, FormatError, Manifest

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1
# What zipfile and json raise for damaged input: among them NotImplementedError for a method that they do not know, and
# RuntimeError for an encrypted member and for nesting beyond the limit of recursion.
_DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    RuntimeError,
    KeyError,
)


class CaptureError(MemtraceError):
    """A capture cannot be read, or is none."""


class CaptureSource:
    """The processes of a capture; a ``ProcSource`` and a context manager."""

    def __init__(self, path: Path) -> None:
        """Open a capture and check its manifest. Raises CaptureError."""
        self._path = path
        self._files: dict[int, dict[str, zipfile.ZipInfo]] = {}
        self._archive: zipfile.ZipFile | None = None
        with self._errors():
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise FormatError("it is no regular file")
            self._archive = zipfile.ZipFile(path)
            try:
                self._check_members()
                self.manifest: Manifest = form.parse_manifest(self._document(form.MANIFEST))
            except BaseException:
                self._archive.close()
                raise

    def pids(self) -> list[int]:
        """The processes of the capture, in ascending order of their ids."""
        return sorted(self.manifest.processes)

    def threads(self, pid: int) -> list[int]:
        """Thread ids of a process, in ascending order."""
        names = self._names(pid)
        words = [name.split("/") for name in names if name.startswith("task/")]
        return sorted({int(parts[1]) for parts in words if len(parts) == 3 and _is_id(parts[1])})

    def read(self, pid: int, name: str) -> bytes:
        """The content of a file at the time of the capture; what a symbolic link led to.

        Raises TargetError and PrivilegeError as reading the live file did then, TargetError also for what the capture
        does not hold, CaptureError where it is damaged.
        """
        info = self._names(pid).get(name)
        if info is not None:
            with self._errors():
                return self._content(info, form.MAX_MEMBER)
        reason = self.process(pid).refused.get(name)
        if reason == form.NO_PERMISSION:
            raise PrivilegeError(
                f"/proc/{pid}/{name} could not be read when the capture was made", "make the capture as root"
            )
        if reason == form.GONE:
            raise TargetError(f"process {pid} had ended, or had no {name}, when the capture was made")
        raise TargetError(f"the capture has no {name} of process {pid}")

    def has(self, pid: int, name: str) -> bool:
        """True where the capture holds a file of a process. Raises TargetError where it is not in the capture."""
        return name in self._names(pid)

    def read_system(self, name: str) -> bytes:
        """The content of a file of no single process; raises FileNotFoundError where the capture has none."""
        with self._errors():
            try:
                info = self._zip.getinfo(f"system/{name}")
            except KeyError:
                info = None
            if info is not None:
                return self._content(info, form.MAX_MEMBER)
        raise FileNotFoundError(f"the capture has no {name}")

    def user_name(self, uid: int) -> str:
        """The name that a user had on the machine of the capture, or the number as text."""
        return self.manifest.users.get(uid, str(uid))

    def process(self, pid: int) -> CapturedProcess:
        """What the manifest says of a process. Raises TargetError where it is not in the capture."""
        try:
            return self.manifest.processes[pid]
        except KeyError:
            raise TargetError(f"process {pid} is not in the capture") from None

    def classes(self, pid: int) -> CapturedClasses | None:
        """The classes of a process's VMAs, found where its memory could be read; None where there are none."""
        info = self._names(pid).get(form.CLASSES)
        if info is None:
            return None
        with self._errors():
            return form.parse_classes(self._document(info.filename))

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _zip(self) -> zipfile.ZipFile:
        assert self._archive is not None  # the constructor would have raised
        return self._archive

    def _names(self, pid: int) -> dict[str, zipfile.ZipInfo]:
        self.process(pid)
        return self._files.get(pid, {})

    def _check_members(self) -> None:
        infos = self._zip.infolist()
        if len(infos) > form.MAX_MEMBERS:
            raise FormatError(f"it has {len(infos):,} files")
        if len({info.filename for info in infos}) != len(infos):
            raise FormatError("it has a file twice")
        size, packed = sum(info.file_size for info in infos), os.path.getsize(self._path)
        if size > form.FREE_EXPANSION and size > form.MAX_EXPANSION * packed:
            raise FormatError(f"it would expand from {packed:,} to {size:,} bytes")
        for info in infos:
            match = form.MEMBER.fullmatch(info.filename)
            if match is None:
                raise FormatError(f"it holds {info.filename[:80]!r}, which no capture does")
            if info.compress_type not in _METHODS or info.flag_bits & _ENCRYPTED:
                raise FormatError(f"{info.filename} is packed in a way that captures are not")
            if match["pid"] is not None:
                self._files.setdefault(int(match["pid"]), {})[match["name"]] = info

    def _document(self, name: str) -> object:
        try:
            info = self._zip.getinfo(name)
        except KeyError:
            raise FormatError(f"it has no {name}") from None
        return json.loads(self._content(info, form.MAX_DOCUMENT))

    def _content(self, info: zipfile.ZipInfo, limit: int) -> bytes:
        if info.file_size > limit:
            raise FormatError(f"{info.filename} has {info.file_size:,} bytes")
        with self._zip.open(info) as file:
            data = file.read(info.file_size + 1)
        if len(data) != info.file_size:
            raise FormatError(f"{info.filename} has another length than the archive says")
        return data

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FormatError as error:
            raise CaptureError(f"{self._path} cannot be read as a capture: {error}") from error
        except _DAMAGE as error:
            text = str(error).split("\n")[0] or type(error).__name__
            raise CaptureError(f"{self._path} is damaged, or is no capture: {text[:200]}") from error
        except OSError as error:
            raise CaptureError(f"{self._path} cannot be read: {error.strerror or error}") from error


def _is_id(word: str) -> bool:
    return word.isdigit() and len(word) <= 10

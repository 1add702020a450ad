"""What ``memtrace maps`` shows, worked out from its options: which columns, and so what has to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tracer.maps import columns as choice
from tracer.maps.columns import Column, find_column
from tracer.maps.process import ProcessMaps
from tracer.maps.read import Needs
from tracer.maps.selection import Filter, GroupKey, ordered

Layout = Literal["usual", "extended", "device", "most", "all"]
Form = Literal["text", "json", "csv"]

_SHARES = ("pss", "locked")


@dataclass(frozen=True, slots=True)
class View:
    """The choices of the user; ``columns`` are names and come before ``layout``."""

    form: Form = "text"
    layout: Layout = "usual"
    columns: Sequence[str] | None = None
    filter: Filter = field(default_factory=Filter)
    sort: str | None = None
    reverse: bool = False
    top: int | None = None
    by: GroupKey | None = None
    flags: bool = False
    quick: bool | None = None

    def needs(self) -> Needs:
        """What has to be read for it: maps alone costs a process next to nothing, smaps may block it."""
        if self.form == "json" or (self.columns is None and self.layout not in ("device", "extended")):
            return Needs(quick=self.quick)
        names = self.columns if self.columns is not None else self._layout_names()
        columns = [find_column(name) for name in names]
        columns += [find_column(self.sort)] if self.sort else []
        smaps = any(column.of_smaps for column in columns) or self.filter.min_rss > 0 or self.flags
        grouped = self.by in ("class", "library")
        return Needs(
            smaps=smaps,
            classes=smaps or grouped or bool(self.filter.classes) or any(column.of_classes for column in columns),
            rollup=any(word in name.lower() for column in columns for name in column.fields for word in _SHARES),
            quick=self.quick,
        )

    def columns_for(self, process: ProcessMaps) -> list[Column]:
        """The columns of a table of this process. Raises UsageError for one that its smaps does not have."""
        if self.columns is not None:
            return [find_column(name, process) for name in self.columns]
        if self.layout == "most":
            columns = choice.most_columns(process)
        elif self.layout == "all":
            columns = choice.all_columns(process)
        else:
            columns = [find_column(name, process) for name in self._names_for(process)]
        if self.flags and process.reader == "smaps" and all(column.name != "vmflags" for column in columns):
            columns.insert(-1, find_column("vmflags"))
        return columns

    def select(self, process: ProcessMaps) -> ProcessMaps:
        """The VMAs to show, in order. Raises UsageError for a column that there is not."""
        return ordered(self.filter.apply(process), self.sort, reverse=self.reverse, top=self.top)

    def _names_for(self, process: ProcessMaps) -> Sequence[str]:
        if self.layout == "usual" and process.reader != "smaps":
            return choice.BY_PAGEMAP if process.reader == "pagemap" else choice.BY_MAPS
        return self._layout_names()

    def _layout_names(self) -> Sequence[str]:
        return {"extended": choice.EXTENDED, "device": choice.DEVICE}.get(self.layout, choice.DEFAULT)

"""Profiles read back by the protobuf library, from the schema stated here anew (google/pprof, proto/profile.proto)."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# name:number, * for repeated; numbers without a type are int64 (indices of strings, mostly).
_MESSAGES = {
    "Profile": "sample_type:1:ValueType* sample:2:Sample* mapping:3:Mapping* location:4:Location* function:5:Function* "
    "string_table:6:string* drop_frames:7 keep_frames:8 time_nanos:9 duration_nanos:10 period_type:11:ValueType "
    "period:12 comment:13:int64* default_sample_type:14",
    "ValueType": "type:1 unit:2",
    "Sample": "location_id:1:uint64* value:2:int64* label:3:Label*",
    "Label": "key:1 str:2 num:3 num_unit:4",
    "Mapping": "id:1:uint64 memory_start:2:uint64 memory_limit:3:uint64 file_offset:4:uint64 filename:5 build_id:6 "
    "has_functions:7:bool has_filenames:8:bool has_line_numbers:9:bool has_inline_frames:10:bool",
    "Location": "id:1:uint64 mapping_id:2:uint64 address:3:uint64 line:4:Line* is_folded:5:bool",
    "Line": "function_id:1:uint64 line:2",
    "Function": "id:1:uint64 name:2 system_name:3 filename:4 start_line:5",
}
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "int64": _Field.TYPE_INT64,
    "uint64": _Field.TYPE_UINT64,
    "bool": _Field.TYPE_BOOL,
    "string": _Field.TYPE_STRING,
}


@cache
def profile_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="profile.proto", package="perftools.profiles", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in fields.split():
            label, number, *kind = text.split(":")
            kind_name = (kind or ["int64"])[0].rstrip("*")
            field = message.field.add(name=label, number=int(number))
            field.label = _Field.LABEL_REPEATED if text.endswith("*") else _Field.LABEL_OPTIONAL
            field.type = _SCALARS.get(kind_name, _Field.TYPE_MESSAGE)
            if kind_name not in _SCALARS:
                field.type_name = f".perftools.profiles.{kind_name}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("perftools.profiles.Profile"))


class Profile:
    """A profile with its references followed, after a check that all of them lead somewhere."""

    def __init__(self, data: bytes) -> None:
        self.raw = profile_class().FromString(gzip.decompress(data))
        self.strings = list(self.raw.string_table)
        self.mappings = {each.id: each for each in self.raw.mapping}
        self.locations = {each.id: each for each in self.raw.location}
        self.functions = {each.id: each for each in self.raw.function}
        self.types = [self.strings[each.type] for each in self.raw.sample_type]
        assert self.strings[0] == "" and len(set(self.strings)) == len(self.strings)
        for table, rows in (
            (self.mappings, self.raw.mapping),
            (self.locations, self.raw.location),
            (self.functions, self.raw.function),
        ):
            assert 0 not in table and len(table) == len(rows), "numbers are unique and not 0"
        assert all(len(each.value) == len(self.types) for each in self.raw.sample)
        assert all(each.mapping_id in self.mappings for each in self.raw.location if each.mapping_id)

    def lines(self, location: Any) -> list[tuple[str, str, int]]:
        """Function, file and line at a location, innermost first."""
        found = [(self.functions[line.function_id], line.line) for line in location.line]
        return [(self.strings[each.name], self.strings[each.filename], number) for each, number in found]

    def samples(self) -> Iterator[tuple[list[tuple[str, str, int]], list[int], dict[str, str]]]:
        """Frames (innermost first), values and labels of each sample."""
        for sample in self.raw.sample:
            frames = [line for number in sample.location_id for line in self.lines(self.locations[number])]
            labels = {self.strings[label.key]: self.strings[label.str] for label in sample.label}
            yield frames, list(sample.value), labels

    def total(self, metric: str) -> int:
        index = self.types.index(metric)
        return sum(sample.value[index] for sample in self.raw.sample)

    @property
    def comments(self) -> list[str]:
        return [self.strings[each] for each in self.raw.comment]

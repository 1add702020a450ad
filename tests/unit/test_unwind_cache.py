"""The disk cache of unwind tables: what is stored comes back, and nothing else is believed."""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections import Counter
from pathlib import Path

import pytest

from tracer.cachedir import VARIABLE
from tracer.unwind.cache import _HEADER, TableCache
from tracer.unwind.image import Segment
from tracer.unwind.tables import ImageTable

BUILD_ID = "ab" * 20
DIGEST = b"d" * 16


def a_table(rows: int = 4, first: int = 1) -> ImageTable:
    return ImageTable(
        array("Q", range(first, first + rows)), array("Q", [2 << 32]), 0x1000, (Segment(1, 2, 3),), Counter({"why": 2})
    )


@pytest.fixture
def cache(tmp_path: Path) -> TableCache:
    cache = TableCache(tmp_path / "cache")
    cache.store(BUILD_ID, DIGEST, a_table())
    return cache


def the_file(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "cache").iterdir()
    return file


def test_a_table_comes_back_as_it_was(cache: TableCache, tmp_path: Path) -> None:
    assert cache.load(BUILD_ID, DIGEST) == a_table()
    assert cache.hits == 1
    assert the_file(tmp_path).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert not cache.problems


def test_another_files_build_id_does_not_get_its_table(cache: TableCache) -> None:
    assert cache.load(BUILD_ID, b"e" * 16) is None
    assert cache.load("cd" * 20, DIGEST) is None
    assert not cache.problems


def test_a_renamed_file_is_not_believed(cache: TableCache, tmp_path: Path) -> None:
    file = the_file(tmp_path)
    file.rename(file.with_name(file.name.replace(DIGEST.hex(), (b"e" * 16).hex())))
    assert cache.load(BUILD_ID, b"e" * 16) is None
    assert cache.problems == {"damaged file": 1}


def test_no_damaged_byte_goes_unseen(cache: TableCache, tmp_path: Path) -> None:
    file = the_file(tmp_path)
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        assert cache.load(BUILD_ID, DIGEST) is None, at
    assert cache.problems == {"damaged file": len(whole)}


def test_no_truncated_file_is_believed(cache: TableCache, tmp_path: Path) -> None:
    file = the_file(tmp_path)
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert cache.load(BUILD_ID, DIGEST) is None
    file.write_bytes(whole + b"\0")
    assert cache.load(BUILD_ID, DIGEST) is None
    cache.store(BUILD_ID, DIGEST, a_table())
    assert cache.load(BUILD_ID, DIGEST) == a_table()


def test_a_header_that_promises_more_than_there_is_costs_no_memory(cache: TableCache, tmp_path: Path) -> None:
    file = the_file(tmp_path)
    fields = list(_HEADER.unpack_from(file.read_bytes()))
    fields[4] = 1 << 60
    file.write_bytes(_HEADER.pack(*fields))
    assert cache.load(BUILD_ID, DIGEST) is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_what_others_may_write_to_is_not_used(cache: TableCache, tmp_path: Path, mode: int) -> None:
    the_file(tmp_path).chmod(mode)
    assert cache.load(BUILD_ID, DIGEST) is None
    assert cache.problems == {"file not trusted": 1}


def test_a_directory_that_others_may_write_to_is_not_used(cache: TableCache, tmp_path: Path) -> None:
    (tmp_path / "cache").chmod(0o777)
    assert cache.load(BUILD_ID, DIGEST) is None
    cache.store(BUILD_ID, b"e" * 16, a_table())
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert sum(cache.problems.values()) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_another_users_file_or_directory_is_not_used(cache: TableCache, tmp_path: Path) -> None:
    os.chown(the_file(tmp_path), 12345, 12345)
    assert cache.load(BUILD_ID, DIGEST) is None
    os.chown(the_file(tmp_path), 0, 0)
    os.chown(tmp_path / "cache", 12345, 12345)
    assert cache.load(BUILD_ID, DIGEST) is None


def test_links_and_pipes_are_not_followed(cache: TableCache, tmp_path: Path) -> None:
    file = the_file(tmp_path)
    aside = file.rename(tmp_path / "aside")
    file.symlink_to(aside)
    assert cache.load(BUILD_ID, DIGEST) is None
    file.unlink()
    os.mkfifo(file, 0o600)
    assert cache.load(BUILD_ID, DIGEST) is None
    file.unlink()
    file.mkdir()
    assert cache.load(BUILD_ID, DIGEST) is None
    cache.store(BUILD_ID, DIGEST, a_table())  # cannot replace a directory: counted
    linked = TableCache(tmp_path / "link")
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    assert linked.load(BUILD_ID, DIGEST) is None
    assert sum(cache.problems.values()) == 4
    assert sum(linked.problems.values()) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [file.name]


def test_a_missing_directory_is_no_problem_until_it_cannot_be_made(tmp_path: Path) -> None:
    cache = TableCache(tmp_path / "none")
    assert cache.load(BUILD_ID, DIGEST) is None
    assert not cache.problems
    (tmp_path / "file").touch()
    blocked = TableCache(tmp_path / "file" / "cache")
    blocked.store(BUILD_ID, DIGEST, a_table())
    assert sum(blocked.problems.values()) == 1


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    size = 8 * 1000
    cache = TableCache(tmp_path / "cache", limit=3 * size + 3000)
    for number in range(3):
        cache.store(BUILD_ID, bytes([number]) * 16, a_table(1000))
        name = next(path for path in (tmp_path / "cache").iterdir() if bytes([number]).hex() * 16 in path.name)
        os.utime(name, (number + 1, number + 1))
    assert cache.load(BUILD_ID, bytes(16)) is not None  # now the most recent
    cache.store(BUILD_ID, b"\3" * 16, a_table(1000))
    assert [cache.load(BUILD_ID, bytes([number]) * 16) is not None for number in range(4)] == [True, False, True, True]
    cache.store(BUILD_ID, b"\4" * 16, a_table(100_000))
    assert cache.problems["file too large"] == 1


def test_leftovers_of_killed_writers_are_removed(cache: TableCache, tmp_path: Path) -> None:
    old, new = tmp_path / "cache" / ".x.unwind.1.2", tmp_path / "cache" / ".y.unwind.1.2"
    other = tmp_path / "cache" / "somebody's"
    for path in (old, new, other):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    cache.store(BUILD_ID, DIGEST, a_table())
    assert (old.exists(), new.exists(), other.exists()) == (False, True, True)


def test_concurrent_writers_and_readers_see_whole_tables(tmp_path: Path) -> None:
    seen = []

    def work(first: int) -> None:
        cache = TableCache(tmp_path / "cache")
        for _ in range(50):
            cache.store(BUILD_ID, DIGEST, a_table(500, first))
            table = cache.load(BUILD_ID, DIGEST)
            seen.append(table is not None and table in (a_table(500, 0), a_table(500, 7)) and not cache.problems)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(seen)
    assert len(seen) == 100


def test_the_environment_names_the_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "there"))
    TableCache.default().store(BUILD_ID, DIGEST, a_table())
    assert len(list((tmp_path / "there").iterdir())) == 1

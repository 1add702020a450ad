"""Allocates below deep interpreter frames: callbacks from C into Python, parsers, a database."""

import json
import re
import sqlite3

DATA = {"a": [1, 2, {"b": "c" * 50}], "x": list(range(100))}
DATABASE = sqlite3.connect(":memory:")
DATABASE.execute("create table t (a text, b integer)")


def recurse(depth: int) -> int:
    if depth:
        return recurse(depth - 1)
    return len(json.loads(json.dumps(DATA)))


while True:
    sorted(range(10), key=lambda i: recurse(i % 5))
    re.sub("[ac]+", lambda _: str(recurse(2)), "xxabcxx")
    DATABASE.execute("insert into t values (?, ?)", ("text" * 10, recurse(3)))
    DATABASE.execute("select count(*), max(a) from t group by b").fetchall()
    DATABASE.execute("delete from t")

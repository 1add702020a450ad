"""A Python program under load, with a planted leak, that speaks the protocol of tests/targets/target.h.

It parses and formats records, so that it allocates as interpreters do. Command `c` answers {"pairs": N}, records since
ready; `q` ends it. Argument: records for each leak of 20 KB, 0 for no leak.
"""

from __future__ import annotations

import json
import sys
import threading

EVERY = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
done = 0
kept: list[bytearray] = []


def parse_record(number: int) -> dict[str, object]:
    text = json.dumps({"id": number, "name": f"user-{number}", "tags": [str(number + i) for i in range(20)]})
    record: dict[str, object] = json.loads(text)
    record["body"] = text * 10
    return record


def planted_leak() -> None:
    kept.append(bytearray(20_000))


def work() -> None:
    global done
    recent: list[dict[str, object]] = []
    while True:
        recent.append(parse_record(done))
        if len(recent) > 200:
            recent.clear()
        done += 1
        if EVERY and done % EVERY == 0:
            planted_leak()


threading.Thread(target=work, daemon=True).start()
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    if line.strip() == "c":
        print(json.dumps({"pairs": done}), flush=True)
    if line.strip() == "q":
        break

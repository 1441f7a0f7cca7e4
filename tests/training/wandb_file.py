"""Reads what wandb wrote offline: a log of LevelDB's format, whose records are protobufs."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7  # bytes; of a block, and of a record: crc, length, type
FULL, LAST = 1, 4  # types of records that end one; 2 and 3 are its first and middle parts


def _chunks(data: bytes) -> Iterator[bytes]:
    at, parts = HEADER, b""  # the first header is the file's
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # too short for a record
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            yield parts
            parts = b""


def read(run: Path) -> list[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """(run id, config, rows of its history) of every session in the run folder, oldest first."""
    from wandb.proto.wandb_internal_pb2 import Record

    sessions = []
    for path in sorted(
        run.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime
    ):
        run_id, config, rows = "", {}, []
        for chunk in _chunks(path.read_bytes()):
            record = Record()
            record.ParseFromString(chunk)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run_id = record.run.run_id
                config |= {
                    item.key: json.loads(item.value_json) for item in record.run.config.update
                }
            if kind == "history":
                row = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                rows.append(row)
        sessions.append((run_id, config, rows))
    return sessions

"""The results of a study in one SQLite file: a row per finished cell, written whole or not at all.

Tables: `about` (key, value), `cells`, `dense` (by model), `scores` (by model, seed, structure,
score and unit), `latency` (by model and shapes). `json_extract(result, '$.top1')` and the like
query the numbers of a cell; predictions are arrays of 32-bit numbers, one per evaluation image.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.errors import UserError
from secateur.study.cells import Cell

VERSION = "1"
OK, UNREACHABLE, FAILED = "ok", "unreachable", "failed"
Numbers = npt.NDArray[np.float32]

_TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE dense (model TEXT PRIMARY KEY, result TEXT NOT NULL, correct BLOB, kl BLOB);
CREATE TABLE cells (
  id TEXT PRIMARY KEY, model TEXT NOT NULL, structure TEXT NOT NULL, score TEXT NOT NULL,
  budget TEXT NOT NULL, repair TEXT NOT NULL, seed INTEGER NOT NULL, status TEXT NOT NULL,
  reason TEXT, result TEXT NOT NULL, digest TEXT, correct BLOB, kl BLOB);
CREATE INDEX by_digest ON cells (model, digest);
CREATE TABLE scores (
  model TEXT, seed INTEGER, structure TEXT, score TEXT, unit TEXT, value REAL,
  PRIMARY KEY (model, seed, structure, score, unit));
CREATE TABLE latency (
  model TEXT, shapes TEXT, result TEXT NOT NULL, PRIMARY KEY (model, shapes));
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a cell: its numbers, and per evaluation image whether right, and the KL."""

    status: str
    reason: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    digest: str | None = None
    correct: Numbers | None = None
    kl: Numbers | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A cell and its outcome."""

    cell: Cell
    outcome: Outcome


class Store:
    """An open store; every write is one transaction."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Open or create; UserError for a file of another version or of other settings."""
        fresh = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._base = sqlite3.connect(path, isolation_level=None)
        try:
            if fresh:
                self._create(settings)
            else:
                self._require_same(settings)
        except BaseException:
            self._base.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def finished(self) -> set[str]:
        """Ids of the cells that need not be run again: failed ones are tried anew."""
        rows = self._base.execute("SELECT id FROM cells WHERE status != ?", (FAILED,))
        return {row[0] for row in rows}

    def add(self, cell: Cell, outcome: Outcome) -> None:
        """Write a cell; a failed one that was there before is replaced."""
        row = {
            "id": cell.id,
            **asdict(cell),
            "status": outcome.status,
            "reason": outcome.reason,
            "result": json.dumps(outcome.result),
            "digest": outcome.digest,
            "correct": _bytes(outcome.correct),
            "kl": _bytes(outcome.kl),
        }
        names = ", ".join(row)
        marks = ", ".join(f":{name}" for name in row)
        self._base.execute(f"INSERT OR REPLACE INTO cells ({names}) VALUES ({marks})", row)

    def by_digest(self, model: str, digest: str) -> Outcome | None:
        """What is known of a model with exactly these weights."""
        query = "SELECT result, correct, kl FROM cells WHERE model = ? AND digest = ? LIMIT 1"
        row = self._base.execute(query, (model, digest)).fetchone()
        if row is None:
            return None
        result, correct, kl = row
        return Outcome(
            status=OK,
            result=json.loads(result),
            digest=digest,
            correct=_numbers(correct),
            kl=_numbers(kl),
        )

    def cells(self) -> Iterator[Known]:
        """All cells with their outcomes, in the order in which they were written."""
        names = "model, structure, score, budget, repair, seed"
        query = f"SELECT {names}, status, reason, result, digest, correct, kl FROM cells"
        for row in self._base.execute(query + " ORDER BY rowid"):
            cell = Cell(**dict(zip(names.split(", "), row[:6], strict=True)))
            yield Known(
                cell=cell,
                outcome=Outcome(
                    status=row[6],
                    reason=row[7],
                    result=json.loads(row[8]),
                    digest=row[9],
                    correct=_numbers(row[10]),
                    kl=_numbers(row[11]),
                ),
            )

    def add_dense(self, model: str, outcome: Outcome) -> None:
        """Write what the dense model does."""
        self._base.execute(
            "INSERT OR REPLACE INTO dense VALUES (?, ?, ?, ?)",
            (model, json.dumps(outcome.result), _bytes(outcome.correct), _bytes(outcome.kl)),
        )

    def dense(self) -> dict[str, Outcome]:
        """What the dense models do, by name."""
        return {
            row[0]: Outcome(
                status=OK,
                result=json.loads(row[1]),
                correct=_numbers(row[2]),
                kl=_numbers(row[3]),
            )
            for row in self._base.execute("SELECT model, result, correct, kl FROM dense")
        }

    def add_scores(self, rows: Iterable[tuple[str, int, str, str, str, float]]) -> None:
        """Write scores of single layers: model, seed, structure, score, unit, value."""
        with self._transaction():
            self._base.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?)", rows)

    def scores(self) -> list[tuple[str, int, str, str, str, float]]:
        """All scores of single layers."""
        return list(self._base.execute("SELECT * FROM scores ORDER BY rowid"))

    def add_latency(self, model: str, shapes: str, result: dict[str, Any]) -> None:
        """Write what a model of some shapes takes beside the dense one."""
        self._base.execute(
            "INSERT OR REPLACE INTO latency VALUES (?, ?, ?)", (model, shapes, json.dumps(result))
        )

    def latency(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Measured latencies by model and shapes."""
        rows = self._base.execute("SELECT model, shapes, result FROM latency")
        return {(model, shapes): json.loads(result) for model, shapes, result in rows}

    def _create(self, settings: dict[str, Any]) -> None:
        with self._transaction():
            for statement in _TABLES.split(";"):
                self._base.execute(statement)
            rows = [("version", VERSION), ("settings", json.dumps(settings, sort_keys=True))]
            self._base.executemany("INSERT INTO about VALUES (?, ?)", rows)

    def _require_same(self, settings: dict[str, Any]) -> None:
        try:
            about = dict(self._base.execute("SELECT key, value FROM about"))
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"'{self._path}' is no store of a study ({error}); give another --out."
            ) from error
        if about.get("version") != VERSION:
            raise UserError(
                f"'{self._path}' was written by another version of secateur (store version "
                f"{about.get('version')}, this one reads {VERSION}); give another --out, or use "
                "the version that wrote it."
            )
        known = json.loads(about["settings"])
        wanted = json.loads(json.dumps(settings))
        for key in wanted:
            if key == "models":
                common = known[key].keys() & wanted[key].keys()
                changed = [name for name in common if known[key][name] != wanted[key][name]]
                if changed:
                    raise UserError(self._changed(f"models.{changed[0]}"))
            elif known.get(key) != wanted[key]:
                raise UserError(self._changed(key))
        merged = known | wanted | {"models": known["models"] | wanted["models"]}
        self._base.execute(
            "UPDATE about SET value = ? WHERE key = 'settings'",
            (json.dumps(merged, sort_keys=True),),
        )

    def _changed(self, key: str) -> str:
        return (
            f"'{self._path}' holds results under another '{key}', which cannot be compared with "
            "new ones; give another --out, or set it back."
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")


def _bytes(numbers: Numbers | None) -> bytes | None:
    return None if numbers is None else numbers.astype("<f4").tobytes()


def _numbers(data: bytes | None) -> Numbers | None:
    return None if data is None else np.frombuffer(data, dtype="<f4")

"""The results of a study in one SQLite file: a row per finished cell, written whole or not at all.

Tables: `about` (key, value), `cells`, `dense` (by model), `scores` (by model, seed, structure,
score and unit), `latency` (by model and shapes). `json_extract(result, '$.top1')` and the like
query the numbers of a cell; predictions are arrays of 32-bit numbers, one per evaluation image.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.errors import UserError
from secateur.study.cells import Cell
from secateur.whole import reason_of, writing

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


_VERSION = "SELECT value FROM about WHERE key = 'version'"
_NAMES = {"about", "dense", "cells", "by_digest", "scores", "latency"}


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


def holds_store(path: Path) -> bool:
    """Whether there is a store at `path`; what a killed run left of a new one is none.

    UserError for any other file.
    """
    if not path.exists():
        return False
    try:
        base = sqlite3.connect(path, isolation_level=None)
        try:
            found = {row[0] for row in base.execute("SELECT name FROM sqlite_master")}
            if "about" in found and base.execute(_VERSION).fetchone():
                return True
            ours = {name for name in found if not name.startswith("sqlite_")} <= _NAMES
            tables = found & (_NAMES - {"by_digest"})
            empty = not any(base.execute(f"SELECT 1 FROM {t} LIMIT 1").fetchone() for t in tables)
            marks = ("application_id", "user_version")
            marked = any(base.execute(f"PRAGMA {mark}").fetchone()[0] for mark in marks)
        finally:
            base.close()
    except sqlite3.Error as error:
        raise _no_store(path, str(error)) from error
    if ours and empty and not marked:
        return False
    raise _no_store(path, "it is a database of something else")


class Store:
    """An open store; every write is one transaction."""

    def __init__(self, path: Path, settings: dict[str, Any], *, read_only: bool = False) -> None:
        """Open or create; UserError for a file of another version or of other settings.

        One of which it is only read stays as it is.
        """
        if not holds_store(path):
            _create(path, settings)
        self._path = path
        self._base = sqlite3.connect(path, isolation_level=None)
        try:
            merged = self._require_same(settings)
            if not read_only:
                query = "UPDATE about SET value = ? WHERE key = 'settings'"
                self._ask(query, (json.dumps(merged, sort_keys=True),))
        except BaseException:
            self._base.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def finished(self) -> set[str]:
        """Ids of the cells that need not be run again: failed ones are tried anew."""
        return {row[0] for row in self._ask("SELECT id FROM cells WHERE status != ?", (FAILED,))}

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
        self._ask(f"INSERT OR REPLACE INTO cells ({names}) VALUES ({marks})", row)

    def by_digest(self, model: str, digest: str) -> Outcome | None:
        """What is known of a model with exactly these weights."""
        query = "SELECT result, correct, kl FROM cells WHERE model = ? AND digest = ? LIMIT 1"
        rows = self._ask(query, (model, digest))
        if not rows:
            return None
        result, correct, kl = rows[0]
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
        for row in self._ask(query + " ORDER BY rowid"):
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
        self._ask(
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
            for row in self._ask("SELECT model, result, correct, kl FROM dense")
        }

    def add_scores(self, rows: Iterable[tuple[str, int, str, str, str, float]]) -> None:
        """Write scores of single layers: model, seed, structure, score, unit, value."""
        with self._telling(), _transaction(self._base):
            self._base.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?)", rows)

    def scores(self) -> list[tuple[str, int, str, str, str, float]]:
        """All scores of single layers."""
        return self._ask("SELECT * FROM scores ORDER BY rowid")

    def add_latency(self, model: str, shapes: str, result: dict[str, Any]) -> None:
        """Write what a model of some shapes takes beside the dense one."""
        self._ask(
            "INSERT OR REPLACE INTO latency VALUES (?, ?, ?)", (model, shapes, json.dumps(result))
        )

    def latency(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Measured latencies by model and shapes."""
        rows = self._ask("SELECT model, shapes, result FROM latency")
        return {(model, shapes): json.loads(result) for model, shapes, result in rows}

    def _require_same(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings of the store with these; UserError where results would not compare."""
        about = dict(self._ask("SELECT key, value FROM about"))
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
        merged: dict[str, Any] = known | wanted
        return merged | {"models": known["models"] | wanted["models"]}

    def _changed(self, key: str) -> str:
        return (
            f"'{self._path}' holds results under another '{key}', which cannot be compared with "
            "new ones; give another --out, or set it back."
        )

    def _ask(self, query: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[Any]:
        """The rows that a query gives, or none once it is carried out."""
        with self._telling():
            return self._base.execute(query, values).fetchall()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(
                f"the store '{self._path}' cannot be used ({error}); finished cells are kept: mend "
                "the cause and give the same command again."
            ) from error


def _create(path: Path, settings: dict[str, Any]) -> None:
    """Write an empty store, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for end in ("-journal", "-wal", "-shm"):
            # WHY: what belongs to a half-created store must not be played back into this one.
            path.with_name(path.name + end).unlink(missing_ok=True)
        with writing(path) as fresh:
            base = sqlite3.connect(fresh, isolation_level=None)
            try:
                base.executescript(_TABLES)
                about = {"version": VERSION, "settings": json.dumps(settings, sort_keys=True)}
                base.executemany("INSERT INTO about VALUES (?, ?)", about.items())
            finally:
                base.close()
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"cannot create the store '{path}' ({reason_of(error)}); mend the cause, or give "
            "another --out."
        ) from error


def _no_store(path: Path, why: str) -> UserError:
    return UserError(f"'{path}' is no store of a study ({why}); give another --out.")


@contextmanager
def _transaction(base: sqlite3.Connection) -> Iterator[None]:
    base.execute("BEGIN")
    try:
        yield
    except BaseException:
        # SQLite itself goes back where a disk is full.
        with suppress(sqlite3.Error):
            base.execute("ROLLBACK")
        raise
    base.execute("COMMIT")


def _bytes(numbers: Numbers | None) -> bytes | None:
    return None if numbers is None else numbers.astype("<f4").tobytes()


def _numbers(data: bytes | None) -> Numbers | None:
    return None if data is None else np.frombuffer(data, dtype="<f4")

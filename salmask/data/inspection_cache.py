"""Inspections of earlier preparations, so that unchanged files are not read again.

The cache is a sqlite database. Without it, `prepare` reads every file and writes the same bytes.
Each row has a digest. A row that does not match it is damaged, and its file is read again.
"""

import hashlib
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from salmask.data.inspection import Inspection

log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 60.0  # for another preparation that is writing
_TABLES = """
CREATE TABLE IF NOT EXISTS checked_inspections (
    path BLOB PRIMARY KEY, digest BLOB,
    state TEXT, width INTEGER, height INTEGER, sha256 TEXT, reason TEXT
) WITHOUT ROWID;
CREATE TEMP TABLE listed (path BLOB PRIMARY KEY) WITHOUT ROWID;
"""


class InspectionCache:
    """Inspections by path, relative to the images' folder.

    A database that fails is closed with a warning, and the preparation goes on without it.

    Args:
        path: of the database, which is created if it does not exist. None: the cache stays empty.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.database: sqlite3.Connection | None = None
        if path is not None:
            with self._close_on_error():
                path.parent.mkdir(parents=True, exist_ok=True)
                # IMMEDIATE waits for another writer at the start, when waiting can succeed.
                self.database = sqlite3.connect(
                    path, timeout=_TIMEOUT_SECONDS, isolation_level="IMMEDIATE"
                )
                self.database.executescript(_TABLES)

    def lookup(self, paths: Iterable[str]) -> dict[str, Inspection]:
        """The cached inspections of some files."""
        columns = "digest, state, width, height, sha256, reason"
        query = f"SELECT {columns} FROM checked_inspections WHERE path = ?"
        inspections, damaged = {}, 0
        if self.database:
            with self._close_on_error():
                for path in paths:
                    if row := self.database.execute(query, (os.fsencode(path),)).fetchone():
                        digest, *fields = row
                        if digest == _digest(path, fields):
                            inspections[path] = Inspection(*fields)
                        else:
                            damaged += 1
        if damaged:
            log.warning("%s: %s rows are damaged; their files are read again", self.path, damaged)
        return inspections

    def store(self, inspections: Mapping[str, Inspection]) -> None:
        """Writes inspections to the database, except those without a state."""
        rows = [
            (os.fsencode(path), _digest(path, each), *each)
            for path, each in inspections.items()
            if each.state
        ]
        if self.database and rows:
            with self._close_on_error(), self.database:
                statement = (
                    "INSERT OR REPLACE INTO checked_inspections VALUES (?, ?, ?, ?, ?, ?, ?)"
                )
                self.database.executemany(statement, rows)

    def delete_all_but(self, paths: Iterable[str]) -> None:
        """Deletes the inspections of all other files: they no longer exist."""
        if self.database:
            with self._close_on_error(), self.database:
                rows = ((os.fsencode(path),) for path in paths)
                self.database.executemany("INSERT OR IGNORE INTO listed VALUES (?)", rows)
                self.database.execute("DELETE FROM checked_inspections WHERE path NOT IN listed")

    def close(self) -> None:
        if self.database:
            self.database.close()
            self.database = None

    @contextmanager
    def _close_on_error(self) -> Iterator[None]:
        """Closes the database with a warning if it fails."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            log.warning(
                "%s: %s; all files are read again. Delete the file if this warning comes back",
                self.path,
                error,
            )
            self.close()


def _digest(path: str, fields: Sequence[object]) -> bytes:
    """The digest of a row."""
    return hashlib.sha256(repr((path, *fields)).encode()).digest()

"""Inspections of earlier preparations, so that unchanged files are not read again.

The cache is a sqlite database. Without it, `prepare` reads every file and writes the same bytes.
"""

import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from salmask.data.inspection import Inspection

T = TypeVar("T")
log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 60.0  # for another preparation that is writing
_TABLES = """
CREATE TABLE IF NOT EXISTS inspections (
    path BLOB PRIMARY KEY, state TEXT, width INTEGER, height INTEGER, sha256 TEXT, reason TEXT
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
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # IMMEDIATE waits for another writer at the start, when waiting can succeed.
            self.database = sqlite3.connect(
                path, timeout=_TIMEOUT_SECONDS, isolation_level="IMMEDIATE"
            )
            self.database.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            self._close_with_warning(error)

    def lookup(self, paths: Iterable[str]) -> dict[str, Inspection]:
        """The cached inspections of some files."""

        def select(database: sqlite3.Connection) -> dict[str, Inspection]:
            query = "SELECT state, width, height, sha256, reason FROM inspections WHERE path = ?"
            rows = {p: database.execute(query, (os.fsencode(p),)).fetchone() for p in paths}
            return {path: Inspection(*row) for path, row in rows.items() if row}

        return self._run(select, {})

    def store(self, inspections: Mapping[str, Inspection]) -> None:
        """Writes inspections to the database, except those without a state."""

        def insert(database: sqlite3.Connection) -> None:
            rows = [(os.fsencode(path), *each) for path, each in inspections.items() if each.state]
            statement = "INSERT OR REPLACE INTO inspections VALUES (?, ?, ?, ?, ?, ?)"
            with database:
                database.executemany(statement, rows)

        if inspections:
            self._run(insert, None)

    def delete_all_but(self, paths: Iterable[str]) -> None:
        """Deletes the inspections of all other files: they no longer exist."""

        def delete(database: sqlite3.Connection) -> None:
            with database:
                rows = ((os.fsencode(path),) for path in paths)
                database.executemany("INSERT OR IGNORE INTO listed VALUES (?)", rows)
                database.execute("DELETE FROM inspections WHERE path NOT IN listed")

        self._run(delete, None)

    def close(self) -> None:
        if self.database is not None:
            self.database.close()
            self.database = None

    def _run(self, function: Callable[[sqlite3.Connection], T], default: T) -> T:
        if self.database is None:
            return default
        try:
            return function(self.database)
        except sqlite3.Error as error:
            self._close_with_warning(error)
            return default

    def _close_with_warning(self, error: Exception) -> None:
        log.warning(
            "%s: %s; all files are read again. Delete the file if this warning comes back",
            self.path,
            error,
        )
        self.close()

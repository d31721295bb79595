"""What earlier preparations found out about files, so that none is read again that did not change.

A sqlite database, and only a memory: without it prepare reads every file and makes the same bytes.
"""

import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from salmask.data.inspection import Seen

T = TypeVar("T")
log = logging.getLogger(__name__)
_WAIT_SECONDS = 60.0  # for another preparation that is writing
_TABLES = """
CREATE TABLE IF NOT EXISTS seen (
    path BLOB PRIMARY KEY, state TEXT, width INTEGER, height INTEGER, sha256 TEXT, reason TEXT
) WITHOUT ROWID;
CREATE TEMP TABLE listed (path BLOB PRIMARY KEY) WITHOUT ROWID;
"""


class Memory:
    """The database at a path, made when there is none. One that fails is told of and left alone;
    without a path nothing is known.

    Names are relative to the images' folder, and kept as the bytes that the file system knows.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.database: sqlite3.Connection | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.database = _connected(path)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def recall(self, paths: Iterable[str]) -> dict[str, Seen]:
        """What is known of some files; notes that these files are there."""
        keys = {path: os.fsencode(path) for path in paths}

        def look(database: sqlite3.Connection) -> dict[str, Seen]:
            with _transaction(database, "DEFERRED"):  # the table is this connection's own
                rows = ((key,) for key in keys.values())
                database.executemany("INSERT OR IGNORE INTO listed VALUES (?)", rows)
            ask = "SELECT state, width, height, sha256, reason FROM seen WHERE path = ?"
            found = {path: database.execute(ask, (key,)).fetchone() for path, key in keys.items()}
            return {path: Seen(*row) for path, row in found.items() if row}

        return self._try(look, {})

    def remember(self, found: Mapping[str, Seen]) -> None:
        """Writes to the disk what was found out."""

        def add(database: sqlite3.Connection) -> None:
            rows = [(os.fsencode(path), *seen) for path, seen in found.items() if seen.state]
            with _transaction(database, "IMMEDIATE"):
                database.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?, ?)", rows)

        if found:
            self._try(add, None)

    def forget_others(self) -> None:
        """Drops the files that nobody recalled: they are gone."""

        def drop(database: sqlite3.Connection) -> None:
            with _transaction(database, "IMMEDIATE"):
                database.execute("DELETE FROM seen WHERE path NOT IN (SELECT path FROM listed)")

        self._try(drop, None)

    def close(self) -> None:
        if self.database is not None:
            self.database.close()
            self.database = None

    def _try(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        if self.database is None:
            return otherwise
        try:
            return work(self.database)
        except sqlite3.Error as error:
            self._give_up(error)
            return otherwise

    def _give_up(self, error: Exception) -> None:
        log.warning(
            "%s: %s; files are read again that earlier preparations knew. Delete it if this stays",
            self.path,
            error,
        )
        self.close()


def _connected(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)
    database.executescript(_TABLES)
    return database


@contextmanager
def _transaction(database: sqlite3.Connection, kind: str) -> Iterator[None]:
    """IMMEDIATE waits for another writer at its start, where waiting cannot be in vain."""
    database.execute(f"BEGIN {kind}")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")

"""The tables of what only the server keeps in the file: datasets, key-value stores and runs."""

from __future__ import annotations

from typing import Final

STORAGE_TABLES: Final = (
    """
    CREATE TABLE IF NOT EXISTS storages (
        key INTEGER PRIMARY KEY AUTOINCREMENT,  -- of one storage for ever, as that of a queue
        kind TEXT NOT NULL,            -- as in the API's paths: 'datasets' or 'key-value-stores'
        id TEXT NOT NULL UNIQUE,
        name TEXT,
        title TEXT,
        general_access TEXT,
        created_at REAL NOT NULL,
        modified_at REAL NOT NULL,
        items INTEGER NOT NULL DEFAULT 0,
        clean_items INTEGER NOT NULL DEFAULT 0,
        UNIQUE (kind, name)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS dataset_items (
        storage INTEGER NOT NULL REFERENCES storages (key),
        last INTEGER NOT NULL,         -- the number of the last item in this row, from 1
        json TEXT NOT NULL,            -- JSON Lines
        UNIQUE (storage, last)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS store_records (
        storage INTEGER NOT NULL REFERENCES storages (key),
        name TEXT NOT NULL,
        content_type TEXT NOT NULL,
        body BLOB NOT NULL,
        UNIQUE (storage, name)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS runs (
        id TEXT PRIMARY KEY,
        started_at REAL NOT NULL,
        dataset TEXT NOT NULL,         -- these are ids
        key_value_store TEXT NOT NULL,
        request_queue TEXT NOT NULL,
        message TEXT,
        is_terminal INTEGER NOT NULL
    )
    """,
)

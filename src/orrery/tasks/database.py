# SPDX-License-Identifier: AGPL-3.0-or-later
"""The tables of the journal: tasks, their transitions, and locks."""

from orrery.system.sqlite import Kind

SCHEMA = """
CREATE TABLE task (
    serial INTEGER PRIMARY KEY AUTOINCREMENT, upid TEXT NOT NULL UNIQUE, starttime INTEGER NOT NULL,
    kind TEXT NOT NULL, subject TEXT NOT NULL, user TEXT NOT NULL, operation TEXT NOT NULL, boot TEXT NOT NULL,
    worker_pid INTEGER NOT NULL, worker_start INTEGER NOT NULL,
    state TEXT NOT NULL, cancelled INTEGER NOT NULL DEFAULT 0, committed INTEGER NOT NULL DEFAULT 0,
    error TEXT, status TEXT, endtime INTEGER, attempts INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX task_open ON task (state) WHERE state != 'ended';
CREATE TABLE transition (
    id INTEGER PRIMARY KEY AUTOINCREMENT, task INTEGER NOT NULL REFERENCES task (serial) ON DELETE CASCADE,
    at REAL NOT NULL, name TEXT NOT NULL, data TEXT NOT NULL, state TEXT NOT NULL) STRICT;
CREATE INDEX transition_task ON transition (task);
CREATE INDEX transition_pending ON transition (task) WHERE state = 'pending';
CREATE TABLE lock (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, owner TEXT NOT NULL, held INTEGER NOT NULL,
    since REAL NOT NULL) STRICT;
CREATE UNIQUE INDEX lock_held ON lock (name) WHERE held = 1;
CREATE INDEX lock_name ON lock (name, id);
CREATE INDEX lock_owner ON lock (owner);
"""

JOURNAL = Kind("journal", 0x4F54534B, 1, SCHEMA)

-- Tasks (times are Unix time in milliseconds): state is 'open', 'answered' or 'done'; owner is '' where given up.
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    service TEXT NOT NULL,
    tenant TEXT NOT NULL,
    owner TEXT NOT NULL,
    state TEXT NOT NULL,
    accepted_ms INTEGER NOT NULL,
    deadline_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    outcome TEXT NOT NULL DEFAULT '',
    takeovers INTEGER NOT NULL DEFAULT 0,
    request BLOB NOT NULL,
    reply BLOB
);
CREATE INDEX unfinished ON tasks (owner) WHERE state != 'done';
-- What happened to them; facts are JSON.
CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    task INTEGER NOT NULL,
    time_ms INTEGER NOT NULL,
    owner TEXT NOT NULL,
    kind TEXT NOT NULL,
    facts TEXT NOT NULL
);
CREATE INDEX history ON entries (task);
-- Leases: until when an owner counts as alive without another word.
CREATE TABLE owners (
    owner TEXT PRIMARY KEY,
    until_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;

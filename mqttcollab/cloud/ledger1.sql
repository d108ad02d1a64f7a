-- Sums by day (UTC, 2026-11-21), tenant ('' for none) and model. Money is in nano-dollars, reservations included.
CREATE TABLE days (
    day TEXT NOT NULL,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    nano INTEGER NOT NULL DEFAULT 0,
    tokens INTEGER NOT NULL DEFAULT 0,
    calls INTEGER NOT NULL DEFAULT 0,
    errors INTEGER NOT NULL DEFAULT 0,
    redactions INTEGER NOT NULL DEFAULT 0,
    seconds REAL NOT NULL DEFAULT 0.0,
    PRIMARY KEY (day, tenant, model)
) WITHOUT ROWID;
-- Calls that were reserved and not settled yet.
CREATE TABLE open (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    day TEXT NOT NULL,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    nano INTEGER NOT NULL
);
PRAGMA user_version = 1;

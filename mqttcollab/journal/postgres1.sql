CREATE SCHEMA IF NOT EXISTS mqttcollab;
-- Tasks (times are Unix time in milliseconds): state is 'open', 'answered' or 'done'; owner is '' where given up.
CREATE TABLE mqttcollab.tasks (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key text NOT NULL UNIQUE,
    service text NOT NULL,
    tenant text NOT NULL,
    owner text NOT NULL,
    state text NOT NULL,
    accepted_ms bigint NOT NULL,
    deadline_ms bigint NOT NULL,
    ended_ms bigint,
    outcome text NOT NULL DEFAULT '',
    takeovers integer NOT NULL DEFAULT 0,
    request bytea NOT NULL,
    reply bytea
);
CREATE INDEX unfinished ON mqttcollab.tasks (owner) WHERE state != 'done';
CREATE INDEX ended ON mqttcollab.tasks (ended_ms) WHERE ended_ms IS NOT NULL;
-- What happened to them; facts are JSON.
CREATE TABLE mqttcollab.entries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task bigint NOT NULL REFERENCES mqttcollab.tasks ON DELETE CASCADE,
    time_ms bigint NOT NULL,
    owner text NOT NULL,
    kind text NOT NULL,
    facts text NOT NULL
);
CREATE INDEX history ON mqttcollab.entries (task);
-- Leases: until when an owner counts as alive without another word, and how long a lease lasts.
CREATE TABLE mqttcollab.owners (
    owner text PRIMARY KEY,
    until_ms bigint NOT NULL,
    lease_ms bigint NOT NULL
);
CREATE TABLE mqttcollab.settings (
    name text PRIMARY KEY,
    value bytea NOT NULL
);

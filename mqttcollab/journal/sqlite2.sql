-- To find what ended first without reading every task.
CREATE INDEX ended ON tasks (ended_ms) WHERE ended_ms IS NOT NULL;
-- How long a lease lasts: where the clock was set back, one that seems to last longer counts from now.
ALTER TABLE owners ADD COLUMN lease_ms INTEGER NOT NULL DEFAULT 3000;

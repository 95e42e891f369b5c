-- +goose Up

-- Leases that are out, of builds and of plans. Operational state: heartbeats move expires_at without an event.
create table leases (
    stream     text        primary key, -- of the build or the run
    attempt    int         not null,
    worker     text        not null,
    expires_at timestamptz not null,
    cancelled  boolean     not null default false -- nobody wants it: the worker is told so until the lease runs out
) with (fillfactor = 70);
create index leases_expires_at on leases (expires_at);

-- When each worker was last heard of. Operational state.
create table workers_seen (
    worker  text        primary key,
    seen_at timestamptz not null,
    jobs    int         not null
) with (fillfactor = 50);

-- What the runs policy knows of runs that have not ended, one document each.
create table open_runs (
    run   uuid primary key,
    state json not null
) with (fillfactor = 50);

-- +goose Down
drop table leases, workers_seen, open_runs;

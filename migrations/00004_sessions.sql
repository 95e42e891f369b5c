-- +goose Up

-- Sessions, so that each process knows those that another began. Operational state.
create table sessions (
    id     bytea       primary key, -- SHA-256 of what the client has
    token  bytea       not null,    -- SHA-256 of the token that it stands for
    scopes text[]      not null,
    ends   timestamptz not null
);
create index sessions_ends on sessions (ends);

-- +goose Down
drop table sessions;

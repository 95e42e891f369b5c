-- +goose Up

-- The event table. Its only writer is append_events (docs/decisions/0003). Positions are gapless and in commit order.
create table events (
    position    bigint      not null,
    stream      text        not null,
    version     bigint      not null, -- place in the stream, from 1
    type        text        not null, -- name and version of the event
    data        json        not null, -- kept to the byte, never edited
    command     uuid        not null,
    correlation uuid        not null,
    causation   bigint      not null, -- position of the event that a policy reacted to, or 0
    actor       text        not null,
    recorded_at timestamptz not null,
    primary key (position)
) partition by range (position);

create index events_stream on events (stream, version);

-- Partition n holds positions n*size .. (n+1)*size-1. Append makes the next one before it is needed.
create table events_0 partition of events for values from (0) to (5000000);

-- The version of each stream, for compare-and-set, and where its events lie, so that a load touches only those partitions.
create table streams (
    stream         text   primary key,
    version        bigint not null,
    first_position bigint not null,
    last_position  bigint not null
) with (fillfactor = 70);

-- What became of each command: handling a command twice finds it here.
create table commands (
    id             uuid        primary key,
    name           text        not null,
    stream         text        not null,
    actor          text        not null,
    status         text        not null, -- applied, refused, failed
    first_position bigint      not null, -- 0: no events
    last_position  bigint      not null,
    digest         text        not null, -- of the request, to tell a retry from another request under the same key
    detail         json        not null, -- problem or result
    recorded_at    timestamptz not null
);

-- The last position, in one row.
create table head (
    position bigint not null
) with (fillfactor = 10);
insert into head values (0);

-- Who follows the log, how far it came, and which process runs it. The epoch fences out a process that lost the lease.
create table followers (
    name         text        primary key,
    position     bigint      not null default 0,
    epoch        bigint      not null default 0,
    owner        text        not null default '',
    leased_until timestamptz not null default '-infinity'
) with (fillfactor = 50);

-- append_events appends everything or nothing, and returns the head before it. The caller counts on each stream standing where it says;
-- event n of the call gets position head + n. Where a command is known (unique violation) or a stream stands elsewhere (RF002),
-- the caller asks append_obstacles which, leaves those out and calls again. The lock comes first: under it every statement sees all
-- that was committed before.
-- +goose StatementBegin
create function append_events(
    p_at timestamptz,
    -- commands
    p_ids uuid[], p_names text[], p_streams text[], p_actors text[], p_status text[], p_first bigint[], p_last bigint[],
    p_digests text[], p_details text[],
    -- streams that begin, that go on, and that a decision without events was made on
    p_new text[], p_new_version bigint[], p_new_first bigint[], p_new_last bigint[],
    p_old text[], p_old_expected bigint[], p_old_version bigint[], p_old_last bigint[],
    p_read text[], p_read_expected bigint[],
    -- events
    p_estreams text[], p_eversions bigint[], p_types text[], p_data text[],
    p_ecommands uuid[], p_correlations uuid[], p_causations bigint[], p_eactors text[])
returns bigint
language plpgsql
set enable_seqscan = off -- a plan made when the tables were small would serve when they are not
set plan_cache_mode = force_generic_plan
as $$
declare
    v_head bigint;
    v_count bigint;
begin
    perform pg_advisory_xact_lock(7236837411); -- eventlog.AppendLock
    select position into v_head from head;
    if cardinality(p_old) > 0 then
        update streams s set version = u.version, last_position = v_head + u.last
            from unnest(p_old, p_old_expected, p_old_version, p_old_last) u(stream, expected, version, last)
            where s.stream = u.stream and s.version = u.expected;
        get diagnostics v_count = row_count;
        if v_count <> cardinality(p_old) then
            raise exception 'a stream has moved on' using errcode = 'RF002';
        end if;
    end if;
    if cardinality(p_read) > 0 and exists (
        select from unnest(p_read, p_read_expected) u(stream, expected) left join streams s on s.stream = u.stream
        where coalesce(s.version, 0) <> u.expected)
    then
        raise exception 'a stream has moved on' using errcode = 'RF002';
    end if;
    if cardinality(p_new) > 0 then
        insert into streams
            select u.stream, u.version, v_head + u.first, v_head + u.last
            from unnest(p_new, p_new_version, p_new_first, p_new_last) u(stream, version, first, last);
    end if;
    if cardinality(p_types) > 0 then
        insert into events
            select v_head + u.n, u.stream, u.version, u.type, u.data::json, u.command, u.correlation, u.causation, u.actor, p_at
            from unnest(p_estreams, p_eversions, p_types, p_data, p_ecommands, p_correlations, p_causations, p_eactors)
                with ordinality u(stream, version, type, data, command, correlation, causation, actor, n);
        update head set position = v_head + cardinality(p_types);
    end if;
    insert into commands
        select u.id, u.name, u.stream, u.actor, u.status,
            case when u.first > 0 then v_head + u.first else 0 end, case when u.first > 0 then v_head + u.last else 0 end,
            u.digest, u.detail::json, p_at
        from unnest(p_ids, p_names, p_streams, p_actors, p_status, p_first, p_last, p_digests, p_details)
            u(id, name, stream, actor, status, first, last, digest, detail);
    return v_head;
end $$;
-- +goose StatementEnd

-- append_obstacles says which commands are known, and which streams do not stand where they are expected.
create function append_obstacles(p_ids uuid[], p_streams text[], p_expected bigint[], out o_known uuid[], out o_stale text[])
language sql
set enable_seqscan = off
as $$
    select (select array_agg(c.id) from commands c where c.id = any(p_ids)),
        (select array_agg(u.stream) from unnest(p_streams, p_expected) u(stream, expected) left join streams s on s.stream = u.stream
            where coalesce(s.version, 0) <> u.expected)
$$;

-- save_checkpoint moves a follower's checkpoint as compare-and-set, as the first statement of the transaction that writes what the
-- events between did. What a crash takes from that transaction is read from the log again, so it need not wait for the disk.
-- +goose StatementBegin
create function save_checkpoint(p_name text, p_epoch bigint, p_from bigint, p_to bigint) returns void
language plpgsql as $$
begin
    perform set_config('synchronous_commit', 'off', true);
    update followers set position = p_to where name = p_name and epoch = p_epoch and position = p_from;
    if not found then
        raise exception 'follower % is fenced at epoch %', p_name, p_epoch using errcode = 'RF001';
    end if;
end $$;
-- +goose StatementEnd

-- +goose Down
drop function save_checkpoint, append_obstacles, append_events;
drop table followers, head, commands, streams, events;

-- Fencing enforced: a row of a fenced table is written only in a transaction that has proven the token of the row's key.

create function coordination.prove_fence(wanted_key text, wanted_token bigint) returns bigint
language plpgsql as $$
declare
    proven_key constant text := nullif(current_setting('coordination.fence_key', true), '');
    highest bigint;
begin
    if proven_key <> wanted_key then
        raise exception 'this transaction has proven lease % and cannot prove % as well', proven_key, wanted_key
            using errcode = 'ZF002', hint = 'write for each lease in a transaction of its own';
    end if;
    -- A holder that falls silent does not keep its successor out.
    perform set_config('idle_in_transaction_session_timeout', '5s', true);
    -- Until this transaction ends a successor cannot record its token, and so does not have the lease yet.
    select token into highest from coordination.fences where key = wanted_key for share;
    if highest = wanted_token then
        perform set_config('coordination.fence_key', wanted_key, true),
            set_config('coordination.fence_token', wanted_token::text, true);
    end if;
    return coalesce(highest, 0);
end
$$;

comment on function coordination.prove_fence is
    'Proves the token of a key for the rest of the transaction where it is the highest known one. Answers the highest. A transaction proves one key, and may be silent for five seconds.';

create function coordination.require_fence() returns trigger
language plpgsql as $$
declare
    prefix constant text := tg_argv[0];
    proven_key constant text := nullif(current_setting('coordination.fence_key', true), '');
    proven_token constant bigint := nullif(current_setting('coordination.fence_token', true), '')::bigint;
    wanted_key text;
    highest bigint;
begin
    if tg_op = 'TRUNCATE' then
        raise exception '% may not be truncated: its rows belong to the holders of leases', tg_relid::regclass
            using errcode = 'ZF001';
    end if;
    foreach wanted_key in array case tg_op
        when 'INSERT' then array[to_jsonb(new) ->> tg_argv[1]]
        when 'DELETE' then array[to_jsonb(old) ->> tg_argv[1]]
        else array[to_jsonb(old) ->> tg_argv[1], to_jsonb(new) ->> tg_argv[1]]
    end loop
        if wanted_key is null then
            raise exception 'a row of % has nothing in its column %, which names its lease', tg_relid::regclass, tg_argv[1]
                using errcode = 'ZF002', hint = 'where the column was renamed, put the table under fencing again';
        end if;
        wanted_key := prefix || wanted_key;
        if proven_key is null then
            raise exception 'a row of % is written by the holder of lease % alone', tg_relid::regclass, wanted_key
                using errcode = 'ZF001',
                hint = 'take the lease and write through its guard; by hand: select coordination.prove_fence(key, token) first in the transaction';
        end if;
        if wanted_key is distinct from proven_key then
            raise exception 'a row of % belongs to lease %, and this transaction has proven %', tg_relid::regclass, wanted_key, proven_key
                using errcode = 'ZF002';
        end if;
    end loop;
    -- The settings are only a claim: whoever set them by hand with an old token is refused here.
    select token into highest from coordination.fences where key = proven_key for share;
    if highest is distinct from proven_token then
        raise exception 'token % of lease % is late: % is known', proven_token, proven_key, highest
            using errcode = 'ZF003';
    end if;
    return null;
end
$$;

comment on function coordination.require_fence is
    'Refuses to write a row without the proven token of its key, which is the first argument with the value of the column named by the second behind it. ZF001: nothing proven, ZF002: another key, ZF003: a late token.';

create function coordination.fence_table(fenced regclass, key_prefix text, key_column name) returns void
language plpgsql as $$
begin
    if not exists (
        select from pg_attribute where attrelid = fenced and attname = key_column and attnum > 0 and not attisdropped
    ) then
        raise exception '% has no column %', fenced, key_column using errcode = 'undefined_column';
    end if;
    if exists (select from pg_class where oid = fenced and (relkind <> 'r' or relispartition or relhassubclass))
        or exists (select from pg_inherits where inhrelid = fenced) then
        raise exception '% is no plain table: triggers do not see all writes to partitions, heirs and views', fenced
            using errcode = 'wrong_object_type';
    end if;
    -- After the write: it sees what other triggers and generated columns made of the row, and undoes it all the same.
    execute format(
        'create trigger fenced_rows after insert or update or delete on %s for each row execute function coordination.require_fence(%L, %L)',
        fenced, key_prefix, key_column);
    execute format(
        'create trigger fenced_table before truncate on %s for each statement execute function coordination.require_fence(%L, %L)',
        fenced, key_prefix, key_column);
end
$$;

comment on function coordination.fence_table is
    'Puts a table under fencing: the key of a row''s lease is the prefix with the value of the column behind it. Whoever may alter the table can lift it.';

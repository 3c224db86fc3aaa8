//! Rules and executions in PostgreSQL.

use contracts::{DeviceId, Timestamp, UserId};
use platform::http::Slice;
use serde_json::Value;
use sqlx::PgConnection;

use super::view::{Execution, LifecycleRule, TypeStats};
use super::{Autoscaling, Backup, Cleanup, RuleType};

macro_rules! select_rule {
    ($rest:literal) => {
        concat!(
            "select r.id, r.name, r.type, r.enabled, r.priority, r.schedule, r.time_zone, r.config, r.last_executed_at,
                case when r.enabled then r.next_execution_at end as next_execution_at, r.execution_count, r.created_at, r.updated_at
            from devices.lifecycle_rules r ",
            $rest
        )
    };
}

macro_rules! select_execution {
    ($rest:literal) => {
        concat!(
            "select e.id, e.rule_id, e.rule_name, e.type, e.slot, e.status, e.affected, e.failed, e.errors, e.started_at, e.completed_at
            from devices.lifecycle_executions e ",
            $rest
        )
    };
}

/// An execution that this replica carries out.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Claimed {
    /// The execution.
    pub id: String,
    /// Its rule.
    pub rule_id: String,
    /// What it does.
    #[sqlx(rename = "type")]
    pub kind: RuleType,
    /// What it does exactly; `None` where the rule is gone.
    pub config: Option<Value>,
    /// Who made the rule.
    pub created_by: Option<UserId>,
    /// The last device that was dealt with.
    pub behind: String,
    /// Its token.
    pub fence: i64,
    /// How often it was taken since it last came further.
    pub attempts: i32,
}

/// A device that an execution is about to make.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The execution.
    pub claimed: &'a Claimed,
    /// What its rule says.
    pub scaling: &'a Autoscaling,
    /// Until when the execution is this replica's.
    pub until: Timestamp,
}

/// Writes a new rule, or another text of one. `false` where there are as many as there may be.
pub async fn put(
    conn: &mut PgConnection,
    rule: &LifecycleRule,
    by: &UserId,
    most: i64,
) -> sqlx::Result<bool> {
    let put = sqlx::query(
        "insert into devices.lifecycle_rules (id, name, type, enabled, priority, schedule, time_zone, config, next_execution_at,
            created_by, created_at, updated_at)
        select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12
        where (select count(*) from devices.lifecycle_rules where id <> $1) < $13
        on conflict (id) do update set name = $2, type = $3, enabled = $4, priority = $5, schedule = $6, time_zone = $7, config = $8,
            next_execution_at = $9, updated_at = $12",
    );
    let put = put
        .bind(&rule.id)
        .bind(&rule.name)
        .bind(rule.kind)
        .bind(rule.enabled)
        .bind(rule.priority)
        .bind(&rule.schedule)
        .bind(&rule.time_zone)
        .bind(&rule.config)
        .bind(rule.next_execution_at)
        .bind(by)
        .bind(rule.created_at)
        .bind(rule.updated_at)
        .bind(most);
    Ok(put.execute(conn).await?.rows_affected() == 1)
}

/// One rule.
pub async fn find(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<LifecycleRule>> {
    sqlx::query_as(select_rule!("where r.id = $1"))
        .bind(id)
        .fetch_optional(conn)
        .await
}

/// One rule, which nobody else changes or begins until the transaction ends.
pub async fn lock(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<LifecycleRule>> {
    sqlx::query_as(select_rule!("where r.id = $1 for no key update"))
        .bind(id)
        .fetch_optional(conn)
        .await
}

/// Rules, newest first, and how many there are.
pub async fn list(
    conn: &mut PgConnection,
    kind: Option<RuleType>,
    slice: Slice,
) -> sqlx::Result<(Vec<LifecycleRule>, i64)> {
    let rules = sqlx::query_as(select_rule!(
        "where ($1::text is null or r.type = $1) order by r.seq desc limit $2 offset $3"
    ))
    .bind(kind)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(&mut *conn)
    .await?;
    let total = sqlx::query_scalar(
        "select count(*) from devices.lifecycle_rules where $1::text is null or type = $1",
    );
    Ok((rules, total.bind(kind).fetch_one(conn).await?))
}

/// The enabled rules of a type, the most urgent first.
pub async fn enabled(conn: &mut PgConnection, kind: RuleType) -> sqlx::Result<Vec<LifecycleRule>> {
    sqlx::query_as(select_rule!(
        "where r.enabled and r.type = $1 order by r.priority desc, r.seq"
    ))
    .bind(kind)
    .fetch_all(conn)
    .await
}

/// Makes whoever makes a rule wait until this transaction ends, so that they are counted one after another.
pub async fn lock_all(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('devices.lifecycle_rules', 0))")
        .execute(conn)
        .await?;
    Ok(())
}

/// Takes what a rule has under way from whoever carries it out: somebody goes on by what the rule says when this
/// transaction is over, or it ends.
pub async fn interrupt(
    conn: &mut PgConnection,
    rule: &str,
    goes_on: bool,
    now: Timestamp,
) -> sqlx::Result<()> {
    let update = sqlx::query(
        "-- lifecycle::interrupt
        update devices.lifecycle_executions set fence = fence + 1, lease_until = $3, attempts = 0,
            status = case when $2 then status else 'failed' end, completed_at = case when $2 then completed_at else $3 end
        where rule_id = $1 and status = 'running'",
    );
    let update = update.bind(rule).bind(goes_on).bind(now);
    update.execute(conn).await?;
    Ok(())
}

/// Deletes a rule; what it has under way ends. `false` where there is none.
pub async fn delete(conn: &mut PgConnection, id: &str, now: Timestamp) -> sqlx::Result<bool> {
    interrupt(conn, id, false, now).await?;
    let deleted = sqlx::query("delete from devices.lifecycle_rules where id = $1");
    Ok(deleted.bind(id).execute(conn).await?.rows_affected() == 1)
}

/// The rules that are due and that nobody else begins, the most urgent first.
pub async fn lock_due(
    conn: &mut PgConnection,
    now: Timestamp,
    most: i64,
) -> sqlx::Result<Vec<LifecycleRule>> {
    sqlx::query_as(select_rule!(
        "where r.enabled and r.next_execution_at <= $1 order by r.priority desc, r.next_execution_at limit $2
        for no key update skip locked"
    ))
    .bind(now)
    .bind(most)
    .fetch_all(conn)
    .await
}

/// Begins an execution of a rule, whose lock the caller holds; `false` where there was one for the slot, or one is under way.
pub async fn begin(
    conn: &mut PgConnection,
    (rule, execution): (&LifecycleRule, &str),
    slot: Option<Timestamp>,
    next: Option<Timestamp>,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let insert = sqlx::query(
        "insert into devices.lifecycle_executions (id, rule_id, rule_name, type, slot, status, lease_until, started_at)
        values ($1, $2, $3, $4, $5, 'running', $6, $6) on conflict do nothing",
    );
    let inserted = insert
        .bind(execution)
        .bind(&rule.id)
        .bind(&rule.name)
        .bind(rule.kind)
        .bind(slot)
        .bind(now)
        .execute(&mut *conn)
        .await?;
    let is_new = inserted.rows_affected() == 1;
    let update = sqlx::query(
        "update devices.lifecycle_rules set next_execution_at = $2, last_executed_at = case when $3 then $4 else last_executed_at end,
            execution_count = execution_count + $3::int where id = $1",
    );
    update
        .bind(&rule.id)
        .bind(next)
        .bind(is_new)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(is_new)
}

/// The execution of a rule that is under way, or else the last one.
pub async fn last(conn: &mut PgConnection, rule: &str) -> sqlx::Result<Option<String>> {
    let select = "select id from devices.lifecycle_executions where rule_id = $1 order by status = 'running' desc, started_at desc limit 1";
    let select = sqlx::query_scalar(select).bind(rule);
    select.fetch_optional(conn).await
}

/// Takes an execution that nobody carries out, or this one, until a moment.
pub async fn claim(
    conn: &mut PgConnection,
    id: Option<&str>,
    (now, until): (Timestamp, Timestamp),
) -> sqlx::Result<Option<Claimed>> {
    let claim = sqlx::query_as(
        "-- lifecycle::claim
        with taken as (
            select e.id from devices.lifecycle_executions e
            where e.status = 'running' and e.lease_until <= $2 and ($1::text is null or e.id = $1)
            order by e.lease_until limit 1 for update skip locked
        )
        update devices.lifecycle_executions e set fence = e.fence + 1, attempts = e.attempts + 1, lease_until = $3
        from taken left join devices.lifecycle_executions o on o.id = taken.id
            left join devices.lifecycle_rules r on r.id = o.rule_id
        where e.id = taken.id
        returning e.id, e.rule_id, e.type, r.config, r.created_by, e.behind, e.fence, e.attempts",
    );
    claim
        .bind(id)
        .bind(now)
        .bind(until)
        .fetch_optional(conn)
        .await
}

/// Says in the transaction of an effect how far an execution is; `false` where it is no longer this replica's. What could
/// not be done is kept with its reason, the first twenty.
pub async fn advance(
    conn: &mut PgConnection,
    claimed: &Claimed,
    behind: &str,
    (affected, error): (i32, Option<&Value>),
    until: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update devices.lifecycle_executions set behind = $3, affected = affected + $4, lease_until = $6,
            failed = failed + ($5::jsonb is not null)::int,
            attempts = case when $4 > 0 or $5::jsonb is not null or behind <> $3 then 0 else attempts end,
            errors = case when $5::jsonb is null or jsonb_array_length(errors) >= 20 then errors else errors || $5::jsonb end
        where id = $1 and fence = $2 and status = 'running'",
    );
    let update = update
        .bind(&claimed.id)
        .bind(claimed.fence)
        .bind(behind)
        .bind(affected)
        .bind(error)
        .bind(until);
    Ok(update.execute(conn).await?.rows_affected() == 1)
}

/// Ends an execution; `false` where it is no longer this replica's.
pub async fn end(
    conn: &mut PgConnection,
    claimed: &Claimed,
    is_whole: bool,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update devices.lifecycle_executions set status = case when $3 then 'completed' else 'failed' end, completed_at = $4
        where id = $1 and fence = $2 and status = 'running'",
    );
    let update = update
        .bind(&claimed.id)
        .bind(claimed.fence)
        .bind(is_whole)
        .bind(now);
    Ok(update.execute(conn).await?.rows_affected() == 1)
}

/// Lets another replica go on with an execution.
pub async fn release(
    conn: &mut PgConnection,
    claimed: &Claimed,
    now: Timestamp,
) -> sqlx::Result<()> {
    let update = sqlx::query(
        "update devices.lifecycle_executions set lease_until = $3, attempts = 0 where id = $1 and fence = $2",
    );
    update
        .bind(&claimed.id)
        .bind(claimed.fence)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// One execution.
pub async fn find_execution(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<Execution>> {
    sqlx::query_as(select_execution!("where e.id = $1"))
        .bind(id)
        .fetch_optional(conn)
        .await
}

/// Executions of a rule or type, newest first, and how many there are.
pub async fn history(
    conn: &mut PgConnection,
    (rule, kind): (Option<&str>, Option<RuleType>),
    slice: Slice,
) -> sqlx::Result<(Vec<Execution>, i64)> {
    let executions = sqlx::query_as(select_execution!(
        "where ($1::text is null or e.rule_id = $1) and ($2::text is null or e.type = $2)
        order by e.started_at desc, e.id desc limit $3 offset $4"
    ))
    .bind(rule)
    .bind(kind)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(&mut *conn)
    .await?;
    let total = sqlx::query_scalar(
        "select count(*) from devices.lifecycle_executions
        where ($1::text is null or rule_id = $1) and ($2::text is null or type = $2)",
    );
    let total = total.bind(rule).bind(kind).fetch_one(conn).await?;
    Ok((executions, total))
}

/// Forgets executions that began before a moment and are over, so many at a time.
pub async fn forget(conn: &mut PgConnection, before: Timestamp, most: i64) -> sqlx::Result<u64> {
    let delete = sqlx::query(
        "delete from devices.lifecycle_executions where id in (
            select id from devices.lifecycle_executions where started_at < $1 and status <> 'running' limit $2)",
    );
    let deleted = delete.bind(before).bind(most).execute(conn).await?;
    Ok(deleted.rows_affected())
}

/// How rules have done, by type; those of one type alone where it is named.
pub async fn stats(
    conn: &mut PgConnection,
    kind: Option<RuleType>,
) -> sqlx::Result<Vec<TypeStats>> {
    sqlx::query_as(
        "-- lifecycle::stats
        select t.type, coalesce(r.rules, 0) as rules, coalesce(r.enabled, 0) as enabled, coalesce(e.executions, 0) as executions,
            coalesce(e.running, 0) as running, coalesce(e.affected, 0) as affected, coalesce(e.failed, 0) as failed,
            e.last_executed_at, r.next_execution_at
        from unnest(array['cleanup', 'autoscaling', 'backup', 'expiration-warning']) with ordinality as t (type, place)
        left join (select type, count(*) as rules, count(*) filter (where enabled) as enabled,
                min(next_execution_at) filter (where enabled) as next_execution_at
            from devices.lifecycle_rules group by type) r on r.type = t.type
        left join (select type, count(*) as executions, count(*) filter (where status = 'running') as running,
                sum(affected)::bigint as affected, sum(failed)::bigint as failed, max(started_at) as last_executed_at
            from devices.lifecycle_executions group by type) e on e.type = t.type
        where $1::text is null or t.type = $1 order by t.place",
    )
    .bind(kind)
    .fetch_all(conn)
    .await
}

/// Devices after this one that nobody has touched for so long, or `only` one where it is such: on nodes that answer, of no
/// pool, with nothing to be done with them, and without a snapshot since that no rule took.
pub async fn untouched(
    conn: &mut PgConnection,
    rule: &Cleanup,
    (only, (behind, most)): (Option<&DeviceId>, (&str, i64)),
    now: Timestamp,
) -> sqlx::Result<Vec<DeviceId>> {
    sqlx::query_scalar(
        "-- lifecycle::untouched
        select d.id from devices.devices d join devices.nodes n on n.name = d.node
            cross join lateral (select $2::timestamptz
                - make_interval(days => case d.status when 'error' then $3::int when 'stopped' then $4::int end) as moment) old
        where d.id > $1 and ($6::text is null or d.id = $6) and d.deleted_at is null and d.updated_at < old.moment
            and not d.lost and (n.down_since is null or d.runtime = 'simulated')
            and not exists (select 1 from devices.snapshots s where s.device_id = d.id and s.created_at >= old.moment and not s.hidden
                and not exists (select 1 from unnest(s.tags) as t (tag) where t.tag like 'rule:%'))
            and not exists (select 1 from devices.operations o where o.device_id = d.id and o.state in ('queued', 'running'))
            and not exists (select 1 from devices.lifecycle_rules r where r.type = 'autoscaling' and r.enabled
                and r.config ->> 'userId' = d.user_id and r.config ->> 'groupName' = d.group_name)
        order by d.id limit $5",
    )
    .bind(behind)
    .bind(now)
    .bind(rule.error_days)
    .bind(rule.stopped_days)
    .bind(most)
    .bind(only)
    .fetch_all(conn)
    .await
}

/// Devices after this one that are running or stopped, and of which snapshots can be taken.
pub async fn to_back_up(
    conn: &mut PgConnection,
    rule: &Backup,
    (behind, most): (&str, i64),
) -> sqlx::Result<Vec<DeviceId>> {
    sqlx::query_scalar(
        "select d.id from devices.devices d
        where d.id > $1 and d.deleted_at is null and d.status in ('running', 'stopped') and d.runtime <> 'kubernetes'
            and ($2::text is null or d.user_id = $2) and ($3::text is null or d.group_name = $3)
        order by d.id limit $4",
    )
    .bind(behind)
    .bind(&rule.user_id)
    .bind(&rule.group_name)
    .bind(most)
    .fetch_all(conn)
    .await
}

/// Snapshots of a device that bear a tag: those that failed, and finished ones beyond the newest few.
pub async fn surplus(
    conn: &mut PgConnection,
    device: &DeviceId,
    (tag, keep): (&str, i64),
    most: i64,
) -> sqlx::Result<Vec<contracts::SnapshotId>> {
    sqlx::query_scalar(
        "-- lifecycle::surplus
        select id from (
            select id, status, row_number() over (partition by status order by created_at desc, id desc) as place
            from devices.snapshots where device_id = $1 and $2 = any(tags) and status in ('ready', 'error')) t
        where status = 'error' or place > $3 order by status, place desc limit $4",
    )
    .bind(device)
    .bind(tag)
    .bind(keep)
    .bind(most)
    .fetch_all(conn)
    .await
}

/// The newest finished snapshot of a device that bears a tag.
pub async fn newest(
    conn: &mut PgConnection,
    device: &DeviceId,
    tag: &str,
) -> sqlx::Result<Option<contracts::SnapshotId>> {
    sqlx::query_scalar(
        "select id from devices.snapshots where device_id = $1 and $2 = any(tags) and status = 'ready'
        order by created_at desc, id desc limit 1",
    )
    .bind(device)
    .bind(tag)
    .fetch_optional(conn)
    .await
}

/// Devices after this one that end soon, and of whose end the rule has not warned.
pub async fn ending(
    conn: &mut PgConnection,
    (rule, days): (&str, i32),
    (behind, most): (&str, i64),
    now: Timestamp,
) -> sqlx::Result<Vec<DeviceId>> {
    sqlx::query_scalar(
        "select d.id from devices.devices d
        where d.id > $1 and d.deleted_at is null and d.expires_at > $2 and d.expires_at <= $2 + make_interval(days => $3)
            and not exists (select 1 from devices.lifecycle_warnings w
                where w.rule_id = $4 and w.device_id = d.id and w.expires_at = d.expires_at)
        order by d.id limit $5",
    )
    .bind(behind)
    .bind(now)
    .bind(days)
    .bind(rule)
    .bind(most)
    .fetch_all(conn)
    .await
}

/// Remembers that a rule warned of an end; `false` where it had.
pub async fn warn(
    conn: &mut PgConnection,
    rule: &str,
    device: &DeviceId,
    expires_at: Timestamp,
) -> sqlx::Result<bool> {
    let insert = sqlx::query(
        "insert into devices.lifecycle_warnings (rule_id, device_id, expires_at) values ($1, $2, $3) on conflict do nothing",
    );
    let inserted = insert.bind(rule).bind(device).bind(expires_at);
    Ok(inserted.execute(conn).await?.rows_affected() == 1)
}

/// How many devices of a group are stopped or on their way to be, and how many there are.
pub async fn pool(
    conn: &mut PgConnection,
    owner: &UserId,
    group: &str,
) -> sqlx::Result<(i64, i64)> {
    sqlx::query_as(
        "select count(*) filter (where status = 'stopped' or status = 'creating' and wanted = 'stopped'), count(*)
        from devices.devices where user_id = $1 and group_name = $2 and deleted_at is null",
    )
    .bind(owner)
    .bind(group)
    .fetch_one(conn)
    .await
}

/// Counts a device in the transaction that makes it; `false` where the group has enough of them, or the execution is no
/// longer this replica's. Whoever fills the same group waits until the transaction ends.
pub async fn take_place(conn: &mut PgConnection, wanted: Wanted<'_>) -> sqlx::Result<bool> {
    let Wanted {
        claimed,
        scaling,
        until,
    } = wanted;
    if !advance(conn, claimed, "", (1, None), until).await? {
        return Ok(false);
    }
    sqlx::query(
        "select pg_advisory_xact_lock(hashtextextended('devices.lifecycle_pools:' || $1 || ':' || $2, 0))",
    )
    .bind(&scaling.user_id)
    .bind(&scaling.group_name)
    .execute(&mut *conn)
    .await?;
    let (ready, all) = pool(conn, &scaling.user_id, &scaling.group_name).await?;
    Ok(ready < scaling.ready && all < scaling.max)
}

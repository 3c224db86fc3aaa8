//! The queue of operations in PostgreSQL.

use std::time::Duration;

use contracts::{DeviceId, SnapshotId, Timestamp, UserId};
use sqlx::{Connection, PgConnection};

use super::Kind;

/// An operation that a worker holds.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Claimed {
    /// Its number.
    pub id: i64,
    /// On which device.
    pub device_id: DeviceId,
    /// What is to be done.
    #[sqlx(try_from = "String")]
    pub kind: Kind,
    /// Proves that this worker holds it.
    pub fencing_token: i64,
    /// Which attempt this is, from 1.
    pub attempts: i32,
    /// The snapshot it is about, where it is about one.
    pub snapshot_id: Option<SnapshotId>,
}

/// How an operation stands.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Progress {
    /// queued, running, done, failed or cancelled.
    pub state: String,
    /// Whether the status of the device tells of it.
    pub begun: bool,
    /// Whether it was tried already.
    pub attempts: i32,
}

/// An operation as a saga.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Saga {
    /// Its name.
    pub saga_id: String,
    /// On which device.
    pub device_id: DeviceId,
    /// Whose device it is.
    pub user_id: UserId,
    /// queued, running, done, failed or cancelled.
    pub state: String,
    /// What is being done.
    pub step: String,
    /// Why it failed.
    pub error: Option<String>,
}

/// Puts an operation into the queue and gives the name of its saga.
pub async fn insert(
    conn: &mut PgConnection,
    device: &DeviceId,
    kind: Kind,
    begun: bool,
    now: Timestamp,
) -> sqlx::Result<String> {
    insert_about(conn, (device, None), kind, begun, now).await
}

/// The same for an operation that is about a snapshot of the device.
pub async fn insert_about(
    conn: &mut PgConnection,
    (device, snapshot): (&DeviceId, Option<&SnapshotId>),
    kind: Kind,
    begun: bool,
    now: Timestamp,
) -> sqlx::Result<String> {
    // Not a device's, but an id like all of ours.
    let saga_id = contracts::TaskId::new().to_string();
    let insert = sqlx::query(
        "insert into devices.operations (saga_id, device_id, kind, state, begun, step, created_at, snapshot_id) values ($1, $2, $3, 'queued', $4, 'queued', $5, $6)",
    );
    insert
        .bind(&saga_id)
        .bind(device)
        .bind(kind.as_str())
        .bind(begun)
        .bind(now)
        .bind(snapshot)
        .execute(conn)
        .await?;
    Ok(saga_id)
}

/// What was last queued behind the operation under way, and how many operations are open. The caller holds the lock
/// of the device.
pub async fn waiting(
    conn: &mut PgConnection,
    device: &DeviceId,
) -> sqlx::Result<(Option<(String, Kind)>, i64)> {
    let rows: Vec<(String, String, bool)> = sqlx::query_as(
        "select saga_id, kind, begun or state = 'running' from devices.operations
        where device_id = $1 and state in ('queued', 'running') order by id",
    )
    .bind(device)
    .fetch_all(conn)
    .await?;
    let open = i64::try_from(rows.len()).unwrap_or(i64::MAX);
    let last = rows.into_iter().rfind(|(_, _, begun)| !begun);
    let last = last.and_then(|(saga, kind, _)| Some((saga, kind.parse().ok()?)));
    Ok((last, open))
}

/// How many devices may boot.
#[derive(Clone, Debug)]
pub struct Boots {
    /// On each node whose engine the caller reaches, at a time and over all replicas.
    pub of_nodes: Vec<(String, i64)>,
    /// How many more this replica waits for: the rest of its hands is for what is done in a moment.
    pub here: i64,
}

/// Claims operations that are due, whose turn it is, and that nobody works on; also those whose worker fell silent. Of
/// devices in containers only those on nodes whose engines the caller reaches and, where devices that shall run are made anew
/// `elsewhere`, those that are to leave a node that is down. Kinds that only newer replicas know are left to them. No node boots more than so many devices at a time: claims wait for each other, so that the count is right.
pub async fn claim(
    conn: &mut PgConnection,
    boots: Boots,
    elsewhere: bool,
    lease: Duration,
    limit: i64,
) -> sqlx::Result<Vec<Claimed>> {
    let mut tx = conn.begin().await?;
    let (reached, most): (Vec<String>, Vec<i64>) = boots.of_nodes.into_iter().unzip();
    if !reached.is_empty() {
        // Not the nodes' rows: creations wait for those.
        sqlx::query(
            "select pg_advisory_xact_lock(hashtextextended('devices.operations.claim', 0))",
        )
        .execute(&mut *tx)
        .await?;
    }
    let claim = sqlx::query_as(
        "-- operations::claim
        with booting as (
            select d.node, count(*) as count from devices.operations q join devices.devices d on d.id = q.device_id
            where q.state = 'running' and q.lease_until >= clock_timestamp() and d.runtime <> 'simulated'
                and q.kind in ('create', 'start', 'restart', 'repair', 'restore', 'move')
            group by d.node),
        due as (
            select q.id, d.node, r.most, k.boots, k.comes, k.boots or k.comes as is_long
            from devices.operations q join devices.devices d on d.id = q.device_id join devices.nodes n on n.name = d.node
                left join unnest($1::text[], $4::bigint[]) as r (node, most) on r.node = d.node
                cross join lateral (select d.runtime = 'docker' and n.down_since is null
                    and q.kind in ('create', 'start', 'restart', 'repair', 'restore', 'move') as boots,
                    -- Its images are brought to another node, which takes as long.
                    d.runtime = 'docker' and n.down_since is not null and q.kind = 'repair' as comes) k
            where (d.runtime = 'simulated' or (n.down_since is null and d.node = any($1)) or ($5 and n.down_since is not null and q.kind = 'repair' and d.wanted = 'running'))
                and q.kind = any($6)
                and (not k.comes or $7 > 0)
                and (not k.boots or ($7 > 0 and coalesce((select b.count from booting b where b.node = d.node), 0) < r.most))
                and ((q.state = 'queued' and q.due_at <= clock_timestamp() and not exists (
                    select 1 from devices.operations o
                    where o.device_id = q.device_id and (o.state = 'running' or (o.state = 'queued' and o.id < q.id))))
                or (q.state = 'running' and q.lease_until < clock_timestamp()))
            -- Many of those that come from a node that is down wait for their turn to be brought: not in front of all others.
            order by k.comes, q.id limit $3 for update of q skip locked),
        ranked as (
            select id, node, most, boots, is_long, row_number() over (partition by node, boots order by id) as place,
                row_number() over (partition by is_long order by comes, id) as nth from due)
        update devices.operations set state = 'running', fencing_token = nextval('devices.fencing_tokens'),
            lease_until = clock_timestamp() + $2, attempts = attempts + 1, begun_at = coalesce(begun_at, clock_timestamp())
        where id in (
            select r.id from ranked r left join booting b on b.node = r.node
            where (not r.boots or r.place + coalesce(b.count, 0) <= r.most) and (not r.is_long or r.nth <= $7))
        returning id, device_id, kind, fencing_token, attempts, snapshot_id",
    );
    let claimed = claim
        .bind(reached)
        .bind(lease)
        .bind(limit)
        .bind(most)
        .bind(elsewhere)
        .bind(
            Kind::ALL
                .iter()
                .map(|kind| kind.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(boots.here)
        .fetch_all(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(claimed)
}

/// Prolongs the lease of a worker; `false` where it is no longer the holder.
pub async fn renew(
    conn: &mut PgConnection,
    claimed: &Claimed,
    lease: Duration,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update devices.operations set lease_until = clock_timestamp() + $3 where id = $1 and fencing_token = $2 and state = 'running'",
    );
    let done = update
        .bind(claimed.id)
        .bind(claimed.fencing_token)
        .bind(lease)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Writes what is being done now; `false` where the worker is no longer the holder.
pub async fn advance(conn: &mut PgConnection, claimed: &Claimed, step: &str) -> sqlx::Result<bool> {
    write_step(conn, claimed, step, None, false).await
}

/// The same, unless this is done at a further attempt while what has a deadline of its own goes on.
pub async fn advance_unless(
    conn: &mut PgConnection,
    claimed: &Claimed,
    step: &str,
    goes_on: &str,
) -> sqlx::Result<bool> {
    write_step(conn, claimed, step, Some(goes_on), false).await
}

/// The same after something that has a deadline of its own: that of the operation begins anew, unless the step is this already.
pub async fn advance_anew(
    conn: &mut PgConnection,
    claimed: &Claimed,
    step: &str,
) -> sqlx::Result<bool> {
    write_step(conn, claimed, step, None, true).await
}

async fn write_step(
    conn: &mut PgConnection,
    claimed: &Claimed,
    step: &str,
    goes_on: Option<&str>,
    anew: bool,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- operations::write_step
        update devices.operations set step = case when step = $4 then step else $3 end, begun = true,
            begun_at = case when $5 and step <> $3 then clock_timestamp() else begun_at end
        where id = $1 and fencing_token = $2 and state = 'running'",
    );
    let done = update
        .bind(claimed.id)
        .bind(claimed.fencing_token)
        .bind(step)
        .bind(goes_on)
        .bind(anew)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Ends an operation; `false` where the worker is no longer the holder.
pub async fn finish(
    conn: &mut PgConnection,
    claimed: &Claimed,
    state: &'static str,
    error: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update devices.operations set state = $3, error = $4, finished_at = $5, lease_until = null,
            step = case when $3 = 'done' then 'done' else step end
        where id = $1 and fencing_token = $2 and state = 'running'",
    );
    let done = update
        .bind(claimed.id)
        .bind(claimed.fencing_token)
        .bind(state)
        .bind(error)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Hands an operation on to whoever reaches the node that its device is on now, as if it was new; `false` where the worker is
/// no longer the holder.
pub async fn hand_on(conn: &mut PgConnection, claimed: &Claimed) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update devices.operations set state = 'queued', lease_until = null, begun_at = null, due_at = clock_timestamp(),
            attempts = 0, error = null
        where id = $1 and fencing_token = $2 and state = 'running'",
    );
    let done = update
        .bind(claimed.id)
        .bind(claimed.fencing_token)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Puts an operation back into the queue; `false` where the worker is no longer the holder.
pub async fn requeue(
    conn: &mut PgConnection,
    claimed: &Claimed,
    pause: Duration,
    counts: bool,
    error: &str,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update devices.operations set state = 'queued', lease_until = null, due_at = clock_timestamp() + $3,
            attempts = attempts - case when $4 then 0 else 1 end, error = $5
        where id = $1 and fencing_token = $2 and state = 'running'",
    );
    let done = update
        .bind(claimed.id)
        .bind(claimed.fencing_token)
        .bind(pause)
        .bind(counts)
        .bind(error)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Cancels what is queued for a device and nobody works on, but for what removes: nobody else would.
pub async fn cancel_queued(
    conn: &mut PgConnection,
    device: &DeviceId,
    reason: &str,
    now: Timestamp,
) -> sqlx::Result<()> {
    let update = sqlx::query(
        "with cancelled as (
            update devices.operations set state = 'cancelled', error = $2, finished_at = $3
            where device_id = $1 and state = 'queued' and kind not in ('delete', 'forget')
            returning kind, snapshot_id)
        update devices.snapshots s set updated_at = $3,
            status = case c.kind when 'snapshot' then 'error' else 'ready' end,
            error = case c.kind when 'snapshot' then $2 end
        from cancelled c where s.id = c.snapshot_id
            and (c.kind, s.status) in (('snapshot', 'creating'), ('restore', 'restoring'))",
    );
    update
        .bind(device)
        .bind(reason)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Ends everything that is to be done with a device or is being done, apart from its deletion: who works on it changes
/// nothing any more.
pub async fn end_all(
    conn: &mut PgConnection,
    device: &DeviceId,
    reason: &str,
    now: Timestamp,
) -> sqlx::Result<u64> {
    let update = sqlx::query(
        "with ended as (
            update devices.operations set state = case when begun then 'failed' else 'cancelled' end, error = $2, finished_at = $3, lease_until = null
            where device_id = $1 and state in ('queued', 'running') and kind not in ('delete', 'forget')
            returning kind, snapshot_id),
        snapshots as (
            update devices.snapshots s set updated_at = $3, error = case e.kind when 'snapshot' then $2 end,
                status = case e.kind when 'snapshot' then 'error' else 'ready' end
            from ended e where s.id = e.snapshot_id and (e.kind, s.status) in (('snapshot', 'creating'), ('restore', 'restoring')))
        select count(*) from ended",
    );
    let done = update
        .bind(device)
        .bind(reason)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}

/// Whether anything is to be done with a device, or is being done.
pub async fn is_busy(conn: &mut PgConnection, device: &DeviceId) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select 1 from devices.operations where device_id = $1 and state in ('queued', 'running'))",
    )
    .bind(device)
    .fetch_one(conn)
    .await
}

/// Takes an operation back that has not begun; `false` where it has.
pub async fn withdraw(
    conn: &mut PgConnection,
    saga_id: &str,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update devices.operations set state = 'cancelled', error = 'its sender did not wait longer', finished_at = $2
        where saga_id = $1 and state = 'queued' and not begun and attempts = 0",
    );
    let done = update.bind(saga_id).bind(now).execute(conn).await?;
    Ok(done.rows_affected() == 1)
}

/// How an operation stands.
pub async fn progress(conn: &mut PgConnection, saga_id: &str) -> sqlx::Result<Option<Progress>> {
    sqlx::query_as("select state, begun, attempts from devices.operations where saga_id = $1")
        .bind(saga_id)
        .fetch_optional(conn)
        .await
}

/// An operation as a saga.
pub async fn saga(conn: &mut PgConnection, saga_id: &str) -> sqlx::Result<Option<Saga>> {
    sqlx::query_as(
        "select o.saga_id, o.device_id, d.user_id, o.state, o.step, o.error
        from devices.operations o join devices.devices d on d.id = o.device_id where o.saga_id = $1",
    )
    .bind(saga_id)
    .fetch_optional(conn)
    .await
}

//! Measurements in PostgreSQL.

use contracts::{DeviceId, Timestamp, UserId};
use sqlx::PgConnection;

use super::Before;
use super::heartbeat::Heartbeat;

/// A device that this replica is to measure in a slot.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Due {
    /// Which device.
    pub device_id: DeviceId,
    /// Whose it is.
    pub user_id: UserId,
    /// What runs it.
    #[sqlx(try_from = "String")]
    pub runtime: crate::device::RuntimeKind,
    /// Where.
    pub node: String,
    /// Processor cores.
    pub cpu_cores: i32,
    /// Memory.
    pub memory_mb: i32,
    /// Storage.
    pub storage_mb: i32,
    taken_at: Option<Timestamp>,
    used_storage_mb: f32,
    counted_cpu: i64,
    counted_rx: i64,
    counted_tx: i64,
}

impl Due {
    /// How much storage it uses: as counted now, or as was last known.
    fn storage(&self, counted: &super::Counted) -> f64 {
        let known = || f64::from(self.used_storage_mb);
        counted.storage_mb.unwrap_or_else(known)
    }

    /// What was counted before.
    pub fn before(&self, now: Timestamp) -> Before {
        let span = self.taken_at.map(|at| now.utc() - at.utc());
        Before {
            milliseconds: span.map(|span| span.num_milliseconds()),
            cpu: self.counted_cpu,
            rx: self.counted_rx,
            tx: self.counted_tx,
        }
    }
}

/// A measurement to be written.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Of which device.
    pub due: Due,
    /// When the device was asked.
    pub at: Timestamp,
    /// What was counted.
    pub counted: super::Counted,
    /// What that makes.
    pub used: super::Used,
}

/// What was last measured on a device.
#[derive(Clone, Copy, Debug, sqlx::FromRow)]
pub struct Reading {
    /// When, or when its last heartbeat was heard.
    pub taken_at: Option<Timestamp>,
    /// Percent of its cores.
    pub cpu_usage: f32,
    /// Memory in use.
    pub memory_mb: f32,
    /// Storage in use.
    pub storage_mb: f32,
    /// Bytes that it received since it was made.
    pub network_rx: i64,
    /// Bytes that it sent since it was made.
    pub network_tx: i64,
}

/// A point of the history.
#[derive(Clone, Copy, Debug, sqlx::FromRow)]
pub struct Point {
    /// When it was measured, or the step began.
    pub at: Timestamp,
    /// Percent.
    pub cpu_usage: f64,
    /// Percent.
    pub memory_usage: f64,
    /// Percent.
    pub storage_usage: f64,
    /// Bytes received.
    pub network_in: i64,
    /// Bytes sent.
    pub network_out: i64,
}

/// Claims running devices for a slot that nobody has claimed for it: those of the nodes that this replica reaches, and the
/// simulated ones that it hosts.
pub async fn claim(
    conn: &mut PgConnection,
    slot: Timestamp,
    (nodes, host): (&[String], &str),
    limit: i64,
) -> sqlx::Result<Vec<Due>> {
    sqlx::query_as(
        "-- measure::claim
        with claimed as (
            insert into devices.readings as r (device_id, slot)
            select d.id, $1 from devices.devices d left join devices.readings o on o.device_id = d.id
            where d.status = 'running' and d.deleted_at is null and (o.slot is null or o.slot < $1)
                and ((d.runtime <> 'simulated' and d.node = any($2))
                    or (d.runtime = 'simulated' and exists (select 1 from devices.hosts h where h.device_id = d.id and h.host = $3)))
            order by d.id limit $4
            on conflict (device_id) do update set slot = excluded.slot where r.slot < excluded.slot
            returning device_id, taken_at, storage_mb, counted_cpu, counted_rx, counted_tx)
        select c.device_id, d.user_id, d.runtime, d.node, d.cpu_cores, d.memory_mb, d.storage_mb, c.taken_at, c.storage_mb as used_storage_mb, c.counted_cpu,
            c.counted_rx, c.counted_tx
        from claimed c join devices.devices d on d.id = c.device_id",
    )
    .bind(slot)
    .bind(nodes)
    .bind(host)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Writes measurements: the last values, the history, and the traffic of their users. One whose device another replica has
/// measured since it was claimed is dropped: what lies between was counted with that one. How many were written.
pub async fn write(conn: &mut PgConnection, measured: &[Measured]) -> sqlx::Result<i64> {
    let texts = |of: fn(&Measured) -> &str| measured.iter().map(of).collect::<Vec<&str>>();
    let floats = |of: fn(&Measured) -> f64| measured.iter().map(of).collect::<Vec<f64>>();
    let counts = |of: fn(&Measured) -> i64| measured.iter().map(of).collect::<Vec<i64>>();
    let ids = texts(|one| one.due.device_id.as_str());
    // In the order in which they are claimed, so that two replicas wait for each other and never both.
    sqlx::query(
        "select 1 from devices.readings where device_id = any($1) order by device_id for update",
    )
    .bind(&ids)
    .execute(&mut *conn)
    .await?;
    let write = sqlx::query_scalar(
        "-- measure::write
        with written as (
            update devices.readings r set taken_at = m.at, cpu_usage = m.cpu_usage, memory_mb = m.memory_mb, storage_mb = coalesce(m.storage_mb, r.storage_mb),
                network_rx = r.network_rx + m.rx, network_tx = r.network_tx + m.tx,
                counted_cpu = m.counted_cpu, counted_rx = m.counted_rx, counted_tx = m.counted_tx
            from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::float8[], $6::float8[], $7::float8[],
                    $8::float8[], $9::float8[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[])
                as m (device_id, user_id, at, before, cpu_usage, memory_mb, storage_mb, memory_usage, storage_usage, rx, tx,
                    counted_cpu, counted_rx, counted_tx)
            where r.device_id = m.device_id and r.taken_at is not distinct from m.before
            returning m.*),
        history as (
            insert into devices.metrics (step, device_id, at, cpu_usage, memory_usage, storage_usage, network_in, network_out)
            select 0, device_id, at, cpu_usage, memory_usage, storage_usage, rx, tx from written
            on conflict do nothing),
        traffic as (
            insert into devices.traffic as t (user_id, month, bytes)
            select user_id, date_trunc('month', at at time zone 'UTC')::date, sum(rx + tx)
            from written group by 1, 2 having sum(rx + tx) > 0 order by 1, 2
            on conflict (user_id, month) do update set bytes = t.bytes + excluded.bytes)
        select count(*) from written",
    );
    let moments = measured.iter().map(|one| one.at.utc());
    let storage = measured.iter().map(|one| one.counted.storage_mb);
    let before = measured
        .iter()
        .map(|one| one.due.taken_at.map(Timestamp::utc));
    write
        .bind(&ids)
        .bind(texts(|one| one.due.user_id.as_str()))
        .bind(moments.collect::<Vec<_>>())
        .bind(before.collect::<Vec<_>>())
        .bind(floats(|one| one.used.cpu_usage))
        .bind(floats(|one| one.counted.memory_mb))
        .bind(storage.collect::<Vec<_>>())
        .bind(floats(|one| {
            super::percent(one.counted.memory_mb, one.due.memory_mb)
        }))
        .bind(floats(|one| {
            super::percent(one.due.storage(&one.counted), one.due.storage_mb)
        }))
        .bind(counts(|one| one.used.rx))
        .bind(counts(|one| one.used.tx))
        .bind(counts(|one| one.counted.cpu))
        .bind(counts(|one| one.counted.rx))
        .bind(counts(|one| one.counted.tx))
        .fetch_one(conn)
        .await
}

/// Claims running devices in containers of these nodes whose storage nobody has counted since a moment, the longest ago
/// first: which, and on which node.
pub async fn claim_storage(
    conn: &mut PgConnection,
    nodes: &[String],
    now: Timestamp,
    since: Timestamp,
    limit: i64,
) -> sqlx::Result<Vec<(DeviceId, String)>> {
    sqlx::query_as(
        "-- measure::claim_storage
        with due as (
            select d.id from devices.devices d left join devices.readings o on o.device_id = d.id
            where d.status = 'running' and d.deleted_at is null and d.runtime = 'docker' and d.node = any($1)
                and (o.storage_at is null or o.storage_at < $3)
            order by o.storage_at nulls first, d.id limit $4),
        claimed as (
            insert into devices.readings as r (device_id, slot, storage_at)
            select id, to_timestamp(0), $2 from due order by id
            on conflict (device_id) do update set storage_at = excluded.storage_at where r.storage_at is null or r.storage_at < $3
            returning device_id)
        select c.device_id, d.node from claimed c join devices.devices d on d.id = c.device_id",
    )
    .bind(nodes)
    .bind(now)
    .bind(since)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Writes how much storage devices use, in megabytes.
pub async fn write_storage(
    conn: &mut PgConnection,
    counted: &[(DeviceId, f64)],
) -> sqlx::Result<()> {
    let (ids, used): (Vec<&str>, Vec<f64>) = counted
        .iter()
        .map(|(device, used)| (device.as_str(), *used))
        .unzip();
    sqlx::query(
        // In the order in which measurements are written, so that the two wait for each other and never both.
        "-- measure::write_storage
        with locked as (
            select device_id from devices.readings where device_id = any($1) order by device_id for update)
        update devices.readings r set storage_mb = c.used
        from locked join unnest($1::text[], $2::float8[]) as c (device_id, used) using (device_id)
        where r.device_id = locked.device_id",
    )
    .bind(ids)
    .bind(used)
    .execute(conn)
    .await?;
    Ok(())
}

/// Takes down a heartbeat of a device that is not deleted; `false` where there is none.
pub async fn hear(
    conn: &mut PgConnection,
    device: &DeviceId,
    said: &Heartbeat,
    now: Timestamp,
) -> sqlx::Result<bool> {
    // The share of the row makes a deletion wait, which forgets the readings: none is left behind. What is late says nothing new.
    let insert = sqlx::query(
        "-- measure::hear
        insert into devices.readings as r (device_id, slot, heartbeat_at, cpu_usage, memory_mb, storage_mb)
        select d.id, to_timestamp(0), $2, coalesce($3, 0), coalesce($4, $5 * d.memory_mb / 100, 0),
            coalesce($6, $7 * d.storage_mb / 100, 0)
        from devices.devices d where d.id = $1 and d.deleted_at is null for share
        on conflict (device_id) do update set heartbeat_at = greatest(r.heartbeat_at, excluded.heartbeat_at),
            cpu_usage = case when $3::float8 is null or $2 < greatest(r.heartbeat_at, r.taken_at) then r.cpu_usage
                else excluded.cpu_usage end,
            memory_mb = case when coalesce($4::float8, $5::float8) is null or $2 < greatest(r.heartbeat_at, r.taken_at)
                then r.memory_mb else excluded.memory_mb end,
            storage_mb = case when coalesce($6::float8, $7::float8) is null or $2 < greatest(r.heartbeat_at, r.taken_at, r.storage_at)
                then r.storage_mb else excluded.storage_mb end",
    );
    let done = insert
        .bind(device)
        .bind(now)
        .bind(said.cpu_usage)
        .bind(said.memory_used)
        .bind(said.memory_usage)
        .bind(said.storage_used)
        .bind(said.storage_usage)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Forgets what was last measured on a device that is gone.
pub async fn forget(conn: &mut PgConnection, device: &DeviceId) -> sqlx::Result<()> {
    sqlx::query("delete from devices.readings where device_id = $1")
        .bind(device)
        .execute(conn)
        .await?;
    Ok(())
}

/// What was last measured on a device.
pub async fn last(conn: &mut PgConnection, device: &DeviceId) -> sqlx::Result<Option<Reading>> {
    sqlx::query_as(
        "select greatest(taken_at, heartbeat_at) as taken_at, cpu_usage, memory_mb, storage_mb, network_rx, network_tx from devices.readings where device_id = $1",
    )
    .bind(device)
    .fetch_optional(conn)
    .await
}

/// What was last measured on devices, of a user or of all.
pub async fn last_of(
    conn: &mut PgConnection,
    ids: &[&str],
) -> sqlx::Result<Vec<(DeviceId, Reading)>> {
    #[derive(sqlx::FromRow)]
    struct Row {
        device_id: DeviceId,
        #[sqlx(flatten)]
        reading: Reading,
    }
    let rows: Vec<Row> = sqlx::query_as(
        "select device_id, greatest(taken_at, heartbeat_at) as taken_at, cpu_usage, memory_mb, storage_mb, network_rx, network_tx from devices.readings where device_id = any($1)",
    )
    .bind(ids)
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.device_id, row.reading))
        .collect())
}

/// The history of a device since a moment, oldest first: measurements of one step, put together into buckets of so many
/// seconds.
pub async fn history(
    conn: &mut PgConnection,
    device: &DeviceId,
    step: i16,
    (since, bucket, limit): (Timestamp, i64, i64),
) -> sqlx::Result<Vec<Point>> {
    sqlx::query_as(
        "-- measure::history
        select * from (
            select to_timestamp(floor(extract(epoch from at) / $4) * $4) as at, avg(cpu_usage)::float8 as cpu_usage,
                avg(memory_usage)::float8 as memory_usage, avg(storage_usage)::float8 as storage_usage,
                sum(network_in)::bigint as network_in, sum(network_out)::bigint as network_out
            from devices.metrics where step = $1 and device_id = $2 and at >= $3
            group by 1 order by 1 desc limit $5) p order by at",
    )
    .bind(step)
    .bind(device)
    .bind(since)
    .bind(bucket)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Up to when measurements are put together into a step: locked until the transaction ends, so that one replica goes on at
/// a time. Of a step of which nothing was put together yet, from when on there are finer ones, or the end.
pub async fn lock_rolled_up(
    conn: &mut PgConnection,
    (finer, coarser): (i16, i16),
    end: Timestamp,
) -> sqlx::Result<Timestamp> {
    sqlx::query(
        "insert into devices.rolled_up (step, until)
        select $2, least($3, coalesce((select to_timestamp(floor(extract(epoch from min(at)) / $2) * $2) from devices.metrics where step = $1), $3))
        on conflict (step) do nothing",
    )
    .bind(finer)
    .bind(coarser)
    .bind(end)
    .execute(&mut *conn)
    .await?;
    sqlx::query_scalar("select until from devices.rolled_up where step = $1 for update")
        .bind(coarser)
        .fetch_one(conn)
        .await
}

/// Puts measurements of a finer step together into one of a coarser one, and notes that it is done.
pub async fn roll_up(
    conn: &mut PgConnection,
    (finer, coarser): (i16, i16),
    (since, until): (Timestamp, Timestamp),
) -> sqlx::Result<u64> {
    let insert = sqlx::query(
        "-- measure::roll_up
        insert into devices.metrics (step, device_id, at, cpu_usage, memory_usage, storage_usage, network_in, network_out)
        select $2, device_id, $3, avg(cpu_usage), avg(memory_usage), avg(storage_usage), sum(network_in), sum(network_out)
        from devices.metrics where step = $1 and at >= $3 and at < $4 group by device_id
        on conflict (step, device_id, at) do nothing",
    );
    let done = insert
        .bind(finer)
        .bind(coarser)
        .bind(since)
        .bind(until)
        .execute(&mut *conn)
        .await?;
    sqlx::query("update devices.rolled_up set until = $2 where step = $1")
        .bind(coarser)
        .bind(until)
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}

/// Deletes measurements of a step that are older than a moment; how many.
pub async fn purge(
    conn: &mut PgConnection,
    step: i16,
    before: Timestamp,
    limit: i64,
) -> sqlx::Result<u64> {
    let delete = sqlx::query(
        "delete from devices.metrics where (step, device_id, at) in (
            select step, device_id, at from devices.metrics where step = $1 and at < $2 order by at limit $3)",
    );
    let done = delete
        .bind(step)
        .bind(before)
        .bind(limit)
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}

/// What all running devices use together, as last measured: CPU cores in use, memory and storage in MB.
pub async fn totals(conn: &mut PgConnection) -> sqlx::Result<(f64, f64, f64)> {
    sqlx::query_as(
        "select coalesce(sum(r.cpu_usage * d.cpu_cores / 100), 0)::float8, coalesce(sum(r.memory_mb), 0)::float8, coalesce(sum(r.storage_mb), 0)::float8
        from devices.readings r join devices.devices d on d.id = r.device_id where d.status = 'running'",
    )
    .fetch_one(conn)
    .await
}

//! What our installations put on devices, as it is written down.

use contracts::{AppId, DeviceId, Timestamp, UserId};
use platform::http::Slice;
use sqlx::PgConnection;

use super::db::Claimed;

/// An app that is on a device, or on its way to it.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct OnDevice {
    /// The app.
    pub app_id: AppId,
    /// The Android package, where it was installed.
    pub package_name: Option<String>,
    /// The state of its installation: queued, running or done.
    pub state: String,
    /// Since when it is there.
    pub installed_at: Option<Timestamp>,
}

/// A device that has an app, or is to have it.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Holder {
    /// The device.
    pub device_id: DeviceId,
    /// Its name.
    pub device_name: String,
    /// The Android package, where it was installed.
    pub package_name: Option<String>,
    /// The state of the installation: queued, running or done.
    pub state: String,
    /// Since when it is there.
    pub installed_at: Option<Timestamp>,
}

/// Writes down what an installation has put on its device, in the transaction that ends it.
pub async fn put(
    tx: &mut PgConnection,
    claimed: &Claimed,
    package_name: &str,
    now: Timestamp,
) -> sqlx::Result<()> {
    let upsert = sqlx::query(
        "-- installed::put
        insert into devices.installed_apps (device_id, package_name, app_id, installation_id, installed_at)
        values ($1, $2, $3, $4, $5)
        on conflict (device_id, package_name) do update set app_id = excluded.app_id,
            installation_id = excluded.installation_id, installed_at = excluded.installed_at",
    );
    upsert
        .bind(&claimed.device_id)
        .bind(package_name)
        .bind(&claimed.app_id)
        .bind(claimed.id)
        .bind(now)
        .execute(tx)
        .await?;
    Ok(())
}

/// Which installation put a package on a device, as it is written down.
pub async fn find(
    conn: &mut PgConnection,
    device: &DeviceId,
    package_name: &str,
) -> sqlx::Result<Option<i64>> {
    let select = sqlx::query_scalar(
        "select installation_id from devices.installed_apps where device_id = $1 and package_name = $2",
    );
    select
        .bind(device)
        .bind(package_name)
        .fetch_optional(conn)
        .await
}

/// Forgets a package that was removed from a device, unless another installation has put it there since.
pub async fn forget(
    conn: &mut PgConnection,
    device: &DeviceId,
    package_name: &str,
    installation: i64,
) -> sqlx::Result<()> {
    let delete = sqlx::query(
        "-- installed::forget
        delete from devices.installed_apps where device_id = $1 and package_name = $2 and installation_id = $3",
    );
    delete
        .bind(device)
        .bind(package_name)
        .bind(installation)
        .execute(conn)
        .await?;
    Ok(())
}

/// Forgets all of a device that is being deleted.
pub async fn forget_all(tx: &mut PgConnection, device: &DeviceId) -> sqlx::Result<()> {
    sqlx::query("delete from devices.installed_apps where device_id = $1")
        .bind(device)
        .execute(tx)
        .await?;
    Ok(())
}

/// What was put on a device, and what is on its way to it for the first time; the latest first.
pub async fn list(
    conn: &mut PgConnection,
    device: &DeviceId,
    limit: i64,
) -> sqlx::Result<Vec<OnDevice>> {
    let select = sqlx::query_as(
        "-- installed::list
        select app_id, package_name, state, installed_at from (
            select app_id, package_name, 'done' as state, installed_at, installation_id as id
            from devices.installed_apps where device_id = $1
            union all
            select distinct on (i.app_id) i.app_id, null, i.state, null, i.id
            from devices.installations i where i.device_id = $1 and i.state in ('queued', 'running')
                and not exists (
                    select 1 from devices.installed_apps a where a.device_id = $1 and a.app_id = i.app_id)
            order by app_id, id
        ) as apps order by id desc limit $2",
    );
    select.bind(device).bind(limit).fetch_all(conn).await
}

/// The devices of an owner, or of all, on which an app was put or to which it is on its way for the first time; the latest
/// installation first.
pub async fn holders(
    conn: &mut PgConnection,
    app: &AppId,
    owner: Option<&UserId>,
    slice: Slice,
) -> sqlx::Result<Vec<Holder>> {
    let select = sqlx::query_as(
        "-- installed::holders
        select d.id as device_id, d.name as device_name, h.package_name, h.state, h.installed_at from (
            select device_id, package_name, 'done' as state, installed_at, installation_id as id
            from devices.installed_apps where app_id = $1
            union all
            select distinct on (i.device_id) i.device_id, null, i.state, null, i.id
            from devices.installations i where i.app_id = $1 and i.state in ('queued', 'running')
                and not exists (
                    select 1 from devices.installed_apps a where a.device_id = i.device_id and a.app_id = $1)
            order by device_id, id
        ) as h join devices.devices d on d.id = h.device_id
        where d.status <> 'deleted' and ($2::text is null or d.user_id = $2)
        order by h.id desc limit $3 offset $4",
    );
    let select = select.bind(app).bind(owner);
    let select = select.bind(slice.limit).bind(slice.offset);
    select.fetch_all(conn).await
}

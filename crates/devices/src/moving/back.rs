//! A device whose new node is lost before what it left behind on its former one was removed: it goes back to that, for it is
//! all that there is of it.

use contracts::{DeviceId, Event, EventBody};
use coordination::PortError;
use platform::events::emit;
use sqlx::PgConnection;
use tracing::warn;

use crate::device::{Device, port_columns};
use crate::node::placement::{self, Demand};
use crate::node::{self, down};
use crate::operation::api::tell;
use crate::operation::db::{Claimed, advance, hand_on};
use crate::operation::steps::{Interrupted, Step, lock_living};
use crate::snapshot::copies;
use crate::{Devices, Error, port};

/// What became of a device that shall go back.
pub enum Back {
    /// It is one of its former node again, and the operation is for whoever reaches that one.
    Gone,
    /// Its own node came back meanwhile.
    Stays,
    /// Nothing of it is kept there.
    Nothing,
    /// What is kept of it is on a node that is not there at the moment.
    Away(String),
}

/// Takes a device back to the node that keeps what it left there.
///
/// Whoever dies before the commit has changed nothing. The leftover that keeps it there is deleted with the same transaction,
/// so that nobody removes it any more; where its removal has begun, nothing is counted on.
pub async fn go(state: &Devices, claimed: &Claimed, device: &Device) -> Step<Back> {
    let (source, nodes) = {
        let mut conn = state.platform.db.acquire().await?;
        let source = keeper(&mut conn, &device.id).await?;
        (source, node::db::all(&mut conn).await?)
    };
    let Some(source) = source else {
        return Ok(Back::Nothing);
    };
    let Some(source) = nodes.iter().find(|node| node.name == source) else {
        return Ok(Back::Nothing);
    };
    state.runtimes.engines.know(source);
    let engine = state.runtimes.engines.of(&source.name)?;
    if source.down_since.is_some() || engine.ping().await.is_err() {
        return Ok(Back::Away(source.name.clone()));
    }
    if let Some(made_of) = &device.restored_from
        && !engine.has_image(made_of).await?
    {
        return Ok(Back::Nothing);
    }
    let ports = state.ports_of(source);
    let mut leased = match ports.lease(&device.id).await {
        Ok(leased) => leased,
        Err(Error::Ports(PortError::Exhausted { .. }) | Error::PortsContended { .. }) => {
            return Ok(Back::Away(source.name.clone()));
        }
        Err(error) => return Err(Interrupted::Ports(error)),
    };
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let before = lock_living(&mut tx, claimed).await?;
    if !advance(&mut tx, claimed, "go-back").await? {
        return Err(Interrupted::Lost);
    }
    let unsuited = if !down::stays_down(&mut tx, &before.node).await? {
        Some(Back::Stays)
    } else if !take_up(&mut tx, &source.name, &before.id).await? {
        Some(Back::Nothing)
    } else {
        None
    };
    if let Some(back) = unsuited {
        tx.rollback().await?;
        ports.hand_back(leased).await.map_err(Interrupted::Ports)?;
        return Ok(back);
    }
    down::leave_behind(&mut tx, &before.id, &before.node, (before.ports(), false)).await?;
    let update = sqlx::query(
        "-- moving::go_back
        update devices.devices set node = $2, adb_port = $3, webrtc_port = $4, scrcpy_port = $5, updated_at = $6 where id = $1",
    );
    let [adb, webrtc, scrcpy] = port_columns(leased.ports);
    let update = update.bind(&before.id).bind(&source.name).bind(adb);
    let update = update.bind(webrtc).bind(scrcpy).bind(now);
    match update.execute(&mut *tx).await {
        Err(error) if port::is_conflict(&error) => {
            tx.rollback().await?;
            ports.give_up(leased).await;
            ports.reconcile().await.map_err(Interrupted::Ports)?;
            return Err(error.into());
        }
        set => set?,
    };
    copies::expect_all(&mut tx, &before.id, &source.name).await?;
    tell(&mut tx, &before, before.status, None, now).await?;
    let body = EventBody::DeviceMoved {
        device_id: before.id.clone(),
        name: before.name.clone(),
        from_node: before.node.clone(),
        to_node: source.name.clone(),
        snapshot_id: None,
    };
    emit(&mut tx, &Event::new(before.user_id.clone(), now, body)).await?;
    let selector = node::selector(&before.metadata);
    let demand = Demand::new(before.provider_type, before.size(), selector);
    if !placement::reserve_again(&mut tx, &source.name, &demand).await? {
        tx.rollback().await?;
        ports.hand_back(leased).await.map_err(Interrupted::Ports)?;
        return Ok(Back::Away(source.name.clone()));
    }
    if !hand_on(&mut tx, claimed).await? {
        return Err(Interrupted::Lost);
    }
    // Whether the commit takes effect may stay unknown.
    leased.keep();
    tx.commit().await?;
    warn!(device.id = %before.id, "device {} goes back to node {}, which keeps it: node {} is down", before.id, source.name, before.node);
    Ok(Back::Gone)
}

/// The node that a device was last given away by, as long as it keeps all that it had of it and the device has not run where
/// it went: what it has done since is there alone.
async fn keeper(conn: &mut PgConnection, device: &DeviceId) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar(
        "-- moving::keeper
        select m.source from devices.moves m
            join devices.devices d on d.id = m.device_id and d.node = m.target
            join devices.leftovers l on l.node = m.source and l.device_id = m.device_id and l.claimed_until is null
            join devices.operations o on o.id = m.operation_id and o.state <> 'done'
        where m.device_id = $1 and m.handed_over_at is not null
            and (d.last_started_at is null or d.last_started_at <= m.handed_over_at)
            and m.operation_id = (select max(operation_id) from devices.moves where device_id = $1)",
    )
    .bind(device)
    .fetch_optional(conn)
    .await
}

/// Takes what was left on a node for what the device is; `false` where its removal has begun.
async fn take_up(conn: &mut PgConnection, node: &str, device: &DeviceId) -> sqlx::Result<bool> {
    let delete = "delete from devices.leftovers where node = $1 and device_id = $2 and claimed_until is null";
    let delete = sqlx::query(delete).bind(node).bind(device);
    Ok(delete.execute(conn).await?.rows_affected() == 1)
}

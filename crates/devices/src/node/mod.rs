//! The nodes that devices run on.

use std::net::IpAddr;

use contracts::Timestamp;
use sqlx::PgConnection;

/// Makes a node known, or its new address.
pub async fn announce(
    conn: &mut PgConnection,
    name: &str,
    address: IpAddr,
    now: Timestamp,
) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "insert into devices.nodes (name, address, created_at, updated_at) values ($1, $2, $3, $3)
        on conflict (name) do update set address = excluded.address, updated_at = excluded.updated_at
        where nodes.address <> excluded.address",
    );
    insert
        .bind(name)
        .bind(address.to_string())
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Whether there is a node of this name.
pub async fn exists(conn: &mut PgConnection, name: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar("select exists (select 1 from devices.nodes where name = $1)")
        .bind(name)
        .fetch_one(conn)
        .await
}

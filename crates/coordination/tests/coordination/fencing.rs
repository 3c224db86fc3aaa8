//! Fencing: a row of a fenced table is written by the latest holder of its lease or by nobody.

use std::time::Duration;

use coordination::lease::{OTHER_FENCE, STALE_FENCE, UNFENCED};
use coordination::{FenceError, Lease, Leases, StoreError};
use sqlx::{Connection as _, PgConnection, PgPool};

use crate::stores::{Stores, stores, until};

const TTL: Duration = Duration::from_secs(10);

/// A table whose rows belong to the holders of `report:{id}`, with the rows 1 and 2, which nobody has written yet.
async fn reports(db: &PgPool) {
    let statements = [
        "create schema shop",
        "create table shop.reports (id bigint primary key, text text not null default '')",
        "insert into shop.reports (id) values (1), (2)",
        "select coordination.fence_table('shop.reports', 'report:', 'id')",
    ];
    for statement in statements {
        sqlx::query(statement).execute(db).await.unwrap();
    }
}

async fn write(conn: &mut PgConnection, id: i64, text: &str) -> Result<u64, String> {
    let update = sqlx::query("update shop.reports set text = $2 where id = $1");
    let done = update.bind(id).bind(text).execute(conn).await;
    done.map(|done| done.rows_affected()).map_err(|error| {
        let code = error.as_database_error().and_then(|error| error.code());
        code.unwrap_or_default().into_owned()
    })
}

async fn text(db: &PgPool, id: i64) -> String {
    let query = sqlx::query_scalar("select text from shop.reports where id = $1");
    query.bind(id).fetch_one(db).await.unwrap()
}

fn leases(stores: &Stores, db: &PgPool) -> Leases {
    Leases::new(stores.redis.clone(), db.clone(), stores.keys.clone())
}

async fn acquire(leases: &Leases, name: &str) -> Lease {
    leases.acquire(name, TTL).await.unwrap().unwrap()
}

async fn refusal(db: &PgPool, statement: &'static str) -> String {
    let error = sqlx::query(statement).execute(db).await.unwrap_err();
    let code = error.as_database_error().and_then(|error| error.code());
    code.unwrap_or_default().into_owned()
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_holder_that_was_paused_past_its_lease_changes_nothing(db: PgPool) {
    reports(&db).await;
    let stores = stores().await;
    let leases = leases(&stores, &db);
    let late = leases.acquire("report:1", TTL).await.unwrap().unwrap();
    let mut tx = late.guard().begin(&db).await.unwrap();
    write(&mut tx, 1, "first").await.unwrap();
    tx.commit().await.unwrap();

    stores.lose_everything().await;
    let next = leases.acquire("report:1", TTL).await.unwrap().unwrap();
    let mut tx = next.guard().begin(&db).await.unwrap();
    write(&mut tx, 1, "second").await.unwrap();
    tx.commit().await.unwrap();

    let refused = late.guard().begin(&db).await.unwrap_err();
    let FenceError::Fenced {
        key,
        token,
        highest,
    } = refused
    else {
        panic!("{refused}");
    };
    assert_eq!(
        (key.as_str(), token, highest),
        ("report:1", late.token(), next.token())
    );
    assert_eq!(text(&db, 1).await, "second");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_successor_waits_for_the_transaction_that_proved_itself_in_time(db: PgPool) {
    reports(&db).await;
    let stores = stores().await;
    let leases = leases(&stores, &db);
    let first = leases.acquire("report:1", TTL).await.unwrap().unwrap();

    let mut tx = first.guard().begin(&db).await.unwrap();
    stores.lose_everything().await;
    let successor = leases.acquire("report:1", TTL);
    tokio::pin!(successor);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut successor).await;
    assert!(early.is_err());
    write(&mut tx, 1, "in time").await.unwrap();
    tx.commit().await.unwrap();

    assert!(successor.await.unwrap().unwrap().token() > first.token());
    assert_eq!(text(&db, 1).await, "in time");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_holder_that_is_stopped_inside_its_transaction_does_not_keep_the_next_one_out(
    db: PgPool,
) {
    reports(&db).await;
    let stores = stores().await;
    let leases = leases(&stores, &db);
    let first = leases.acquire("report:1", TTL).await.unwrap().unwrap();

    // Nothing more is heard of it.
    let mut stopped = first.guard().begin(&db).await.unwrap();
    write(&mut stopped, 1, "never committed").await.unwrap();
    stores.lose_everything().await;

    until("another has the lease", async || {
        let next = leases.acquire("report:1", TTL).await;
        next.is_ok_and(|lease| lease.is_some())
    })
    .await;
    assert!(stopped.commit().await.is_err());
    assert_eq!(text(&db, 1).await, "");
}

#[sqlx::test(migrations = "../../migrations")]
async fn whoever_has_proven_nothing_is_refused_whatever_the_statement(db: PgPool) {
    reports(&db).await;

    for statement in [
        "update shop.reports set text = 'by hand' where id = 1",
        "insert into shop.reports (id) values (3)",
        "insert into shop.reports (id) values (1) on conflict (id) do update set text = 'by hand'",
        "delete from shop.reports",
        "truncate shop.reports",
    ] {
        assert_eq!(refusal(&db, statement).await, UNFENCED, "{statement}");
    }

    assert_eq!(text(&db, 1).await, "");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_guard_writes_the_rows_of_its_own_key_alone(db: PgPool) {
    reports(&db).await;
    let stores = stores().await;
    let lease = leases(&stores, &db).acquire("report:1", TTL).await;
    let guard = lease.unwrap().unwrap().guard();

    for statement in [
        "update shop.reports set text = 'mine' where id = 2",
        "update shop.reports set id = 3 where id = 1",
        "update shop.reports set id = 4 where id = 2",
        "delete from shop.reports",
    ] {
        let mut tx = guard.begin(&db).await.unwrap();
        let error = sqlx::query(statement).execute(&mut *tx).await.unwrap_err();
        let code = error.as_database_error().and_then(|error| error.code());
        assert_eq!(code.as_deref(), Some(OTHER_FENCE), "{statement}");
    }
    let mut tx = guard.begin(&db).await.unwrap();
    let insert = sqlx::query("delete from shop.reports where id = 1");
    insert.execute(&mut *tx).await.unwrap();
    let insert = sqlx::query("insert into shop.reports (id, text) values (1, 'mine')");
    insert.execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();

    assert_eq!(text(&db, 1).await, "mine");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_proof_ends_with_its_transaction_and_a_forged_one_with_an_old_token_is_refused(
    db: PgPool,
) {
    reports(&db).await;
    let stores = stores().await;
    let leases = leases(&stores, &db);
    let old = acquire(&leases, "report:1").await;
    let late = old.guard();
    old.release().await.unwrap();
    let lease = acquire(&leases, "report:1").await;
    let mut conn = db.acquire().await.unwrap();

    let mut tx = conn.begin().await.unwrap();
    lease.guard().prove(&mut tx).await.unwrap();
    assert_eq!(write(&mut tx, 1, "proven").await, Ok(1));
    tx.rollback().await.unwrap();
    assert_eq!(write(&mut conn, 1, "later").await, Err(UNFENCED.to_owned()));

    let mut tx = conn.begin().await.unwrap();
    assert!(late.prove(&mut tx).await.unwrap_err().is_fenced());
    assert_eq!(write(&mut tx, 1, "late").await, Err(UNFENCED.to_owned()));
    tx.rollback().await.unwrap();

    let mut tx = conn.begin().await.unwrap();
    let forged = sqlx::query(
        "select set_config('coordination.fence_key', 'report:1', true), set_config('coordination.fence_token', $1, true)",
    );
    forged
        .bind(late.fence.to_string())
        .execute(&mut *tx)
        .await
        .unwrap();
    assert_eq!(
        write(&mut tx, 1, "forged").await,
        Err(STALE_FENCE.to_owned())
    );
    tx.rollback().await.unwrap();

    assert_eq!(text(&db, 1).await, "");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_transaction_proves_one_lease_and_may_not_fall_silent(db: PgPool) {
    reports(&db).await;
    let stores = stores().await;
    let leases = leases(&stores, &db);
    let first = acquire(&leases, "report:1").await;
    let second = acquire(&leases, "report:2").await;

    let mut tx = db.begin().await.unwrap();
    first.guard().prove(&mut tx).await.unwrap();
    first.guard().prove(&mut tx).await.unwrap();
    let query = sqlx::query_scalar("show idle_in_transaction_session_timeout");
    let bound: String = query.fetch_one(&mut *tx).await.unwrap();
    assert_eq!(bound, "5s");
    let refused = second.guard().prove(&mut tx).await.unwrap_err();

    let FenceError::Store(StoreError::Refused { source, .. }) = refused else {
        panic!("{refused}");
    };
    assert!(source.to_string().contains("report:2"), "{source}");
}

#[sqlx::test(migrations = "../../migrations")]
async fn the_row_that_counts_is_the_one_that_is_stored(db: PgPool) {
    reports(&db).await;
    // A trigger that moves a row to another lease, and a key that is computed.
    for statement in [
        "create function shop.move() returns trigger language plpgsql as 'begin new.id := 3; return new; end'",
        "create trigger later before update on shop.reports for each row when (new.text = 'moved') execute function shop.move()",
        "create table shop.totals (id bigint, kind text generated always as ('t' || id) stored)",
        "select coordination.fence_table('shop.totals', 'total:', 'kind')",
    ] {
        sqlx::query(statement).execute(&db).await.unwrap();
    }
    let stores = stores().await;
    let leases = leases(&stores, &db);
    let report = acquire(&leases, "report:1").await;
    let mut tx = report.guard().begin(&db).await.unwrap();
    assert_eq!(write(&mut tx, 1, "mine").await, Ok(1));
    let delete = sqlx::query("delete from shop.reports where id = 1");
    delete.execute(&mut *tx).await.unwrap();
    let insert = sqlx::query("insert into shop.reports (id) values (1)");
    insert.execute(&mut *tx).await.unwrap();
    assert_eq!(
        write(&mut tx, 1, "moved").await,
        Err(OTHER_FENCE.to_owned())
    );
    tx.rollback().await.unwrap();

    let total = acquire(&leases, "total:t1").await;
    let mut tx = total.guard().begin(&db).await.unwrap();
    let insert = sqlx::query("insert into shop.totals (id) values (1)");
    insert.execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
}

#[sqlx::test(migrations = "../../migrations")]
async fn what_cannot_be_fenced_whole_is_not_fenced_at_all(db: PgPool) {
    for statement in [
        "create schema shop",
        "create table shop.days (day date) partition by range (day)",
        "create table shop.may partition of shop.days for values from ('2026-05-01') to ('2026-06-01')",
        "create table shop.base (id bigint)",
        "create table shop.heir () inherits (shop.base)",
        "create view shop.seen as select 1 as id",
    ] {
        sqlx::query(statement).execute(&db).await.unwrap();
    }
    for (fence, code) in [
        (
            "select coordination.fence_table('shop.days', 'd:', 'day')",
            "42809",
        ),
        (
            "select coordination.fence_table('shop.may', 'd:', 'day')",
            "42809",
        ),
        (
            "select coordination.fence_table('shop.base', 'b:', 'id')",
            "42809",
        ),
        (
            "select coordination.fence_table('shop.heir', 'b:', 'id')",
            "42809",
        ),
        (
            "select coordination.fence_table('shop.seen', 's:', 'id')",
            "42809",
        ),
        (
            "select coordination.fence_table('shop.base', 'b:', 'name')",
            "42703",
        ),
    ] {
        assert_eq!(refusal(&db, fence).await, code, "{fence}");
    }
}

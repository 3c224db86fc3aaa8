//! Migrating a database that is in use.

use std::time::Duration;

use platform::db::{MIGRATOR, migrate, migrate_within};
use sqlx::PgPool;
use sqlx::migrate::Migrator;

/// Applies the migrations up to one.
async fn migrate_to(db: &PgPool, version: i64) {
    let migrations = MIGRATOR.migrations.iter().cloned();
    let before = migrations.filter(|migration| migration.version <= version);
    let migrator = Migrator::with_migrations(before.collect());
    migrator.run(db).await.unwrap();
}

async fn version(db: &PgPool) -> i64 {
    sqlx::query_scalar("select max(version) from _sqlx_migrations")
        .fetch_one(db)
        .await
        .unwrap()
}

#[sqlx::test(migrations = false)]
async fn many_replicas_may_migrate_at_once(db: PgPool) {
    let all = (0..4).map(|_| migrate(&db));

    for migrated in futures::future::join_all(all).await {
        migrated.unwrap();
    }

    let newest = MIGRATOR
        .migrations
        .iter()
        .map(|migration| migration.version);
    assert_eq!(Some(version(&db).await), newest.max());
}

#[sqlx::test(migrations = false)]
async fn a_migration_gives_way_to_a_long_transaction_and_is_tried_again(db: PgPool) {
    migrate_to(&db, 57).await;
    let mut reader = db.begin().await.unwrap();
    sqlx::query("select count(*) from billing.transactions")
        .execute(&mut *reader)
        .await
        .unwrap();

    // Who comes behind the migration, which waits for the reader, gets through long before the reader is done.
    let behind = async {
        let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
        while sqlx::query_scalar::<_, i64>(waiting)
            .fetch_one(&db)
            .await
            .unwrap()
            == 0
        {
            tokio::task::yield_now().await;
        }
        sqlx::query("select count(*) from billing.transactions")
            .execute(&db)
            .await
            .unwrap();
    };
    let (refused, ()) = tokio::join!(migrate_within(&db, Duration::ZERO), behind);

    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("migration 58 does not get its locks"),
        "{refused}"
    );
    assert_eq!(version(&db).await, 57);
    let (migrated, ()) = tokio::join!(migrate(&db), async { reader.rollback().await.unwrap() });
    migrated.unwrap();
}

#[sqlx::test(migrations = false)]
async fn an_index_whose_building_was_cut_off_is_built_anew(db: PgPool) {
    migrate_to(&db, 67).await;
    let mut writer = db.begin().await.unwrap();
    sqlx::query("lock table billing.usage_sessions in row exclusive mode")
        .execute(&mut *writer)
        .await
        .unwrap();

    migrate_within(&db, Duration::ZERO).await.unwrap_err();

    let valid = "select indisvalid from pg_index where indexrelid = 'billing.usage_sessions_device_idx'::regclass";
    let is_valid = || sqlx::query_scalar::<_, bool>(valid).fetch_one(&db);
    assert!(!is_valid().await.unwrap());
    writer.rollback().await.unwrap();
    migrate(&db).await.unwrap();
    assert!(is_valid().await.unwrap());
}

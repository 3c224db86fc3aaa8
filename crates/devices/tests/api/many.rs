//! Ten thousand devices: each page is read by its index, in as many statements as a page of one.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tracing::field::{Field, Visit};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

use crate::app::{TestApp, User, text};

/// Counts the statements on devices that the driver tells of.
#[derive(Clone, Default)]
struct Statements(Arc<AtomicUsize>);

impl Statements {
    fn take(&self) -> usize {
        self.0.swap(0, Ordering::SeqCst)
    }
}

struct IsOnDevices(bool);

impl Visit for IsOnDevices {
    fn record_debug(&mut self, _: &Field, value: &dyn Debug) {
        self.0 |= format!("{value:?}").contains("devices.");
    }
}

impl<S: tracing::Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target().starts_with("sqlx::query") {
            let mut visit = IsOnDevices(false);
            event.record(&mut visit);
            self.0.fetch_add(usize::from(visit.0), Ordering::SeqCst);
        }
    }
}

async fn fill(db: &PgPool, node: &str) {
    sqlx::query(
        "insert into devices.devices (id, user_id, name, type, provider_type, runtime, status, wanted, cpu_cores, memory_mb, storage_mb,
            resolution, dpi, android_version, group_name, node, adb_port, webrtc_port, scrcpy_port, created_at, updated_at, released_at, deleted_at)
        select 'many-' || n, case when n % 10 < 8 then 'alice' else 'user' || n % 97 end, 'phone ' || n, 'phone', 'redroid', 'simulated',
            (array['running', 'stopped', 'stopped', 'error'])[1 + n % 4], 'stopped', 1, 512, 1024, '1080x1920', 320, '11',
            case when n % 50 = 0 then 'rack' end, $1, 30000 + n, 30000 + n, 30000 + n, now() - n * interval '1 second', now(), null, null
        from generate_series(1, 12500) n",
    )
    .bind(node)
    .execute(db)
    .await
    .unwrap();
    // As autovacuum leaves it.
    sqlx::raw_sql("vacuum analyze devices.devices")
        .execute(db)
        .await
        .unwrap();
}

/// How often the whole table of devices was read from end to end so far, on the one connection there is.
async fn whole_reads(db: &PgPool) -> i64 {
    let mut conn = db.acquire().await.unwrap();
    for query in [
        "select pg_stat_force_next_flush()",
        "select pg_stat_clear_snapshot()",
    ] {
        sqlx::query(query).execute(&mut *conn).await.unwrap();
    }
    sqlx::query_scalar(
        "select seq_scan from pg_stat_user_tables where schemaname = 'devices' and relname = 'devices'",
    )
    .fetch_one(&mut *conn)
    .await
    .unwrap()
}

async fn ids(user: &User, path: &str) -> Vec<String> {
    let page = user.get(path).await.expect(StatusCode::OK).body;
    let list = match &page {
        Value::Array(list) => list,
        page => page["data"]
            .as_array()
            .or(page["items"].as_array())
            .unwrap(),
    };
    list.iter().map(|device| text(device, "id")).collect()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_page_of_ten_thousand_devices_is_read_by_an_index_in_few_statements(db: PgPool) {
    let statements = Statements::default();
    let subscriber = tracing_subscriber::registry().with(statements.clone());
    // Each test is a process of its own.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    // Each connection counts for itself what it reads.
    let db = PgPoolOptions::new()
        .max_connections(1)
        .connect_with(db.connect_options().as_ref().clone())
        .await
        .unwrap();
    let app = TestApp::new(db.clone()).await;
    let (alice, root) = (
        app.user("alice", &[]).await,
        app.user("root", &["admin"]).await,
    );
    fill(&db, &app.config.node).await;
    assert_eq!(alice.get("/devices/count").await.body["count"], 10_000);

    for (path, most) in [
        ("/devices?limit=500", 1),
        ("/devices?page=3&pageSize=100", 2),
        ("/devices?page=1&pageSize=500&status=error", 2),
        ("/devices?limit=50&groupName=rack", 1),
        ("/devices/my?pageSize=500", 2),
        ("/devices/cursor?limit=500", 1),
        ("/devices/cursor?limit=100&status=running", 1),
        ("/devices/quick-list?limit=500", 2),
        ("/devices/available?limit=500", 2),
        ("/devices/batch?ids=many-1,many-2,many-3", 1),
        ("/devices/count?status=stopped", 1),
        ("/devices/my/stats", 1),
    ] {
        // Often enough for a statement to be planned once and for all, if it were.
        for _ in 0..7 {
            let before = whole_reads(&db).await;
            statements.take();
            alice.get(path).await.expect(StatusCode::OK);
            let asked = statements.take();
            assert!(
                (1..=most).contains(&asked),
                "{path} took {asked} statements"
            );
            let reads = whole_reads(&db).await - before;
            // A count of all that most rows belong to may well read them all; a page may not.
            if most == 1 && !path.contains("stats") && !path.contains("count") {
                assert_eq!(reads, 0, "{path} read the whole table");
            }
        }
    }
    for path in [
        "/devices/cursor?limit=100",
        "/devices/cursor?limit=100&status=error",
        "/devices?limit=100&status=running",
    ] {
        let before = whole_reads(&db).await;
        root.get(path).await.expect(StatusCode::OK);
        assert_eq!(
            whole_reads(&db).await,
            before,
            "{path} read the whole table"
        );
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn cursor_pages_hold_every_device_once_though_others_are_made_meanwhile(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let alice = app.user("alice", &[]).await;
    fill(&db, &app.config.node).await;
    let all = ids(&alice, "/devices?limit=500&status=error&offset=0").await;

    let (mut seen, mut cursor, mut pages) = (Vec::new(), None::<String>, 0);
    loop {
        let from = cursor
            .map(|cursor| format!("&cursor={cursor}"))
            .unwrap_or_default();
        let path = format!("/devices/cursor?limit=300&status=error{from}");
        let page = alice.get(&path).await.expect(StatusCode::OK).body;
        let found = page["data"].as_array().unwrap();
        assert_eq!(page["count"], found.len());
        seen.extend(found.iter().map(|device| text(device, "id")));
        pages += 1;
        if page["hasMore"] == false {
            assert_eq!(page["nextCursor"], Value::Null);
            break;
        }
        cursor = Some(text(&page, "nextCursor"));
        sqlx::query("update devices.devices set created_at = now() + interval '1 day' where id = (select id from devices.devices where user_id <> 'alice' limit 1)")
            .execute(&db)
            .await
            .unwrap();
        alice
            .create(json!({ "name": "new", "autoStart": false }))
            .await;
    }

    assert!(pages > 3, "{pages}");
    assert_eq!(seen[..500], all[..]);
    let total = alice.get("/devices/count?status=error").await.body["count"]
        .as_u64()
        .unwrap();
    assert_eq!(u64::try_from(seen.len()).unwrap(), total);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(u64::try_from(seen.len()).unwrap(), total);
    for cursor in ["x", "1-", "-1", "99999999999999999999-1"] {
        let answer = alice.get(&format!("/devices/cursor?cursor={cursor}")).await;
        answer.refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn short_lists_show_what_is_theirs(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob) = (app.user("alice", &[]).await, app.user("bob", &[]).await);
    let running = alice.running().await;
    let stopped = alice
        .create(json!({ "name": "Quiet", "autoStart": false }))
        .await;
    let foreign = bob.running().await;
    app.run_operations().await;

    let quick = alice
        .get("/devices/quick-list?search=quiet")
        .await
        .expect(StatusCode::OK)
        .body;
    let expected = json!({ "items": [{ "id": stopped["id"], "name": "Quiet", "status": "stopped" }], "total": 1 });
    assert_eq!(quick, expected);
    let available = alice
        .get("/devices/available")
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        (&available["total"], &available["items"][0]["id"]),
        (&json!(1), &running["id"])
    );
    let path = format!(
        "/devices/batch?ids={},{},,none,%20",
        text(&stopped, "id"),
        text(&foreign, "id")
    );
    assert_eq!(ids(&alice, &path).await, [text(&stopped, "id")]);
    for path in ["/devices/batch", "/devices/batch?ids=,"] {
        alice
            .get(path)
            .await
            .refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    }
    let foreign = alice.get("/devices/cursor?userId=bob").await;
    foreign.refused(StatusCode::FORBIDDEN, "FORBIDDEN");
}

//! What is too old is deleted, and whoever misses it is told.

use serde_json::json;
use sqlx::PgPool;

use crate::app::{Cluster, Instance, with_sweep};

async fn age(instance: &Instance, user: &str, upto: i64) {
    let age = "update notifications.notifications set created_at = created_at - interval '91 days'
        where user_id = $1 and seq <= $2";
    let age = sqlx::query(age).bind(user).bind(upto);
    age.execute(&instance.platform.db).await.unwrap();
}

async fn count(instance: &Instance, query: &'static str) -> i64 {
    let count = sqlx::query_scalar(query);
    count.fetch_one(&instance.platform.db).await.unwrap()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn who_asks_for_what_was_deleted_for_its_age_is_told_of_the_gap(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    for n in 1..=6 {
        cluster.first.send("alice", &format!("m{n}")).await;
    }
    age(&cluster.first, "alice", 4).await;

    // Two replicas at once delete, and count, each notification once.
    let (here, there) = tokio::join!(
        cluster.first.state.run_cron_jobs(),
        cluster.second.state.run_cron_jobs()
    );
    here.unwrap();
    there.unwrap();

    let page = cluster.first.get("/notifications", &alice).await.body;
    assert_eq!(
        [&page["total"], &page["unreadCount"]],
        [&json!(2), &json!(2)]
    );
    for (last_seq, recovered, first) in [(3, false, 5), (4, true, 5), (5, true, 6), (7, false, 0)] {
        let path = format!("/notifications?token={alice}&lastSeq={last_seq}");
        let mut socket = cluster.second.connect(&path).await;
        let welcome = socket.event("welcome").await;
        assert_eq!(welcome["recovered"], recovered, "after {last_seq}");
        if first > 0 {
            assert_eq!(socket.event("notification").await["seq"], first);
        }
    }
    let mut socket = cluster
        .second
        .connect(&format!("/notifications?token={alice}"))
        .await;
    let welcome = socket.event("welcome").await;
    assert!(welcome.get("recovered").is_none(), "{welcome}");
    assert!(welcome["seq"].is_i64(), "{welcome}");
    assert_eq!(cluster.first.send("alice", "m7").await["seq"], 7);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn more_than_a_batch_goes_in_one_run_and_young_ones_stay(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    cluster.first.send("alice", "m1").await;
    let many = "insert into notifications.notifications
            (id, user_id, seq, kind, title, message, priority, status, delivery_status, channels, created_at)
        select 'old' || n, 'alice', n, 'system', 't', 'm', 'normal', 'read', 'sent', '[]', now() - interval '100 days'
        from generate_series(2, 1201) as n";
    let db = &cluster.first.platform.db;
    sqlx::query(many).execute(db).await.unwrap();
    let counted = "update notifications.inboxes set last_seq = 1201";
    sqlx::query(counted).execute(db).await.unwrap();

    cluster.first.state.run_cron_jobs().await.unwrap();

    let left = "select count(*) from notifications.notifications";
    assert_eq!(count(&cluster.first, left).await, 1);
    let unread = "select unread from notifications.inboxes";
    assert_eq!(count(&cluster.first, unread).await, 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_has_yet_to_leave_stays_and_deliveries_go_with_their_notifications(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    for n in 1..=2 {
        cluster.first.send("alice", &format!("m{n}")).await;
    }
    age(&cluster.first, "alice", 2).await;
    let deliveries = "insert into notifications.deliveries
            (id, notification_id, user_id, channel, state, leaves_at, due_at, created_at, finished_at)
        select 'd' || seq, id, user_id, 'email', case seq when 1 then 'queued' else 'sent' end,
            now(), now() + interval '1 day', now(), case seq when 1 then null else now() end
        from notifications.notifications";
    let db = &cluster.first.platform.db;
    sqlx::query(deliveries).execute(db).await.unwrap();

    cluster.first.state.run_cron_jobs().await.unwrap();

    let left = "select seq from notifications.notifications";
    assert_eq!(count(&cluster.first, left).await, 1);
    let left = "select count(*) from notifications.deliveries";
    assert_eq!(count(&cluster.first, left).await, 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn broadcasts_that_are_long_over_go_with_who_was_reached(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let db = &cluster.first.platform.db;
    let broadcasts = "insert into notifications.broadcasts
            (id, kind, title, message, priority, upto, recipients, state, created_by, created_at, finished_at)
        select id, 'system', 't', 'm', 'normal', 0, 0, 'done', 'root', now(), now() - days * interval '1 day'
        from (values ('old', 91), ('young', 1)) as b (id, days)";
    sqlx::query(broadcasts).execute(db).await.unwrap();
    let receipts = "insert into notifications.broadcast_receipts
        select b, 'u' || n from unnest(array['old', 'young']) as b, generate_series(1, 700) as n";
    sqlx::query(receipts).execute(db).await.unwrap();

    cluster.first.state.run_cron_jobs().await.unwrap();

    let left = "select count(*) from notifications.broadcasts";
    assert_eq!(count(&cluster.first, left).await, 1);
    let left = "select count(*) from notifications.broadcast_receipts";
    assert_eq!(count(&cluster.first, left).await, 700);
}

//! A user's notifications in figures, and their deletion in batches.

use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Cluster, with_sweep, without_sweep};

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn figures_count_ones_own_by_what_and_when_they_are(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let mut ids = Vec::new();
    for (kind, priority) in [("billing", "high"), ("billing", "low"), ("device", "low")] {
        let body = json!({ "userId": "alice", "message": "m", "type": kind, "priority": priority });
        let sent = cluster
            .first
            .ask("POST", "/notifications", &alice, body)
            .await;
        ids.push(sent.body["id"].as_str().unwrap().to_owned());
    }
    cluster.first.send("bob", "not alice's").await;
    let read = format!("/notifications/{}/read", ids[0]);
    cluster.first.ask("PATCH", &read, &alice, Value::Null).await;
    let age = "update notifications.notifications set created_at = created_at - interval '8 days' where id = $1";
    let age = sqlx::query(age).bind(&ids[2]);
    age.execute(&cluster.first.platform.db).await.unwrap();

    let stats = cluster.second.get("/notifications/stats", &alice).await;

    assert_eq!(
        stats.body,
        json!({
            "total": 3, "unread": 2, "read": 1, "today": 2, "thisWeek": 2,
            "byType": { "system": 0, "billing": 2, "device": 1, "promotion": 0, "security": 0 },
            "byPriority": { "low": 2, "normal": 0, "high": 1, "urgent": 0 },
        })
    );
    let foreign = "/notifications/stats?userId=bob";
    let refused = cluster.second.get(foreign, &alice).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let admin = cluster.sign_in("root", &["admin"]).await;
    assert_eq!(cluster.second.get(foreign, &admin).await.body["total"], 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_batch_deletes_ones_own_once_and_sockets_hear_what_is_left(db: PgPool) {
    let cluster = Cluster::new(db, without_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let sent = cluster.first.send("alice", &format!("{n}")).await;
        ids.push(sent["id"].clone());
    }
    let bobs = cluster.first.send("bob", "not alice's").await;
    let mut socket = cluster
        .second
        .connect(&format!("/notifications?token={alice}"))
        .await;
    assert_eq!(socket.event("unread-count").await["count"], 5);
    let path = "/notifications/batch/delete";
    let batch = json!({ "ids": [ids[0], ids[1], ids[1], ids[2], bobs["id"]] });

    // Two replicas do the same at once: each notification is deleted, and counted, by one of them.
    let (here, there) = tokio::join!(
        cluster.first.ask("POST", path, &alice, batch.clone()),
        cluster.second.ask("POST", path, &alice, batch.clone()),
    );

    let deleted = |reply: &crate::app::Reply| reply.body["deleted"].as_i64().unwrap();
    assert_eq!(deleted(&here) + deleted(&there), 3);
    assert_eq!(socket.event("unread-count").await["count"], 2);
    let again = cluster.first.ask("POST", path, &alice, batch).await;
    assert_eq!((again.status, deleted(&again)), (StatusCode::OK, 0));
    let bob = cluster.sign_in("bob", &["user"]).await;
    let count = cluster.first.get("/notifications/unread/count", &bob).await;
    assert_eq!(count.body["count"], 1);

    for ids in [json!([]), json!(vec![ids[3].clone(); 101]), json!([7])] {
        let body = json!({ "ids": ids });
        let refused = cluster.first.ask("POST", path, &alice, body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    }
}

//! What an order was placed for is what it is paid for.

use contracts::{Event, EventBody};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::TestApp;

async fn paid(db: &PgPool) -> Vec<Event> {
    let events: Vec<Value> = sqlx::query_scalar(
        "select event from platform.outbox where kind = 'order.paid' order by event ->> 'occurredAt'",
    )
    .fetch_all(db)
    .await
    .unwrap();
    let read = |event| serde_json::from_value(event).unwrap();
    events.into_iter().map(read).collect()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_plan_that_changes_after_the_order_changes_nothing_that_is_paid_for(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let alice = app.user("alice").await;
    let order = alice.order("basic").await;
    sqlx::query("update billing.plans set max_devices = 1, duration = 1 where id = 'basic'")
        .execute(&db)
        .await
        .unwrap();

    alice.pay(&order).await;

    let events = paid(&db).await;
    let EventBody::OrderPaid { plan, .. } = &events[0].body else {
        panic!("{events:?}");
    };
    assert_eq!((plan.max_devices, plan.days), (5, 30));
    assert_eq!(plan.name, "Basic");
}

#[sqlx::test(migrations = false)]
async fn orders_that_were_paid_before_terms_were_kept_are_told_once_more(db: PgPool) {
    let migrator = &platform::db::MIGRATOR;
    migrator.run_to(29, &db).await.unwrap();
    sqlx::raw_sql(
        "insert into billing.orders (id, order_no, user_id, plan_id, plan_name, amount, final_amount, state, paid_at,
            expires_at, created_at, updated_at)
        select 'o' || n, 'ORD' || n, 'alice', 'basic', 'Basic', 9900, 9900, case n when 3 then 'PENDING' else 'PAID' end,
            case n when 3 then null else timestamptz '2026-01-02 03:04:05.678Z' + n * interval '1 day' end, now(), now(), now()
        from generate_series(1, 3) n;
        insert into platform.subscriptions (consumer, kind) values ('notifications', 'order.paid');
        insert into platform.outbox (id, kind, due_at, event) values ('waits', 'order.paid', now(), '{\"id\": \"waits\", \"userId\": \"alice\",
            \"type\": \"order.paid\", \"occurredAt\": \"2026-01-01T00:00:00.000Z\", \"data\": {\"orderId\": \"o1\", \"orderNo\": \"ORD1\",
            \"planId\": \"basic\", \"amount\": 99, \"paymentNo\": null}}');",
    )
    .execute(&db)
    .await
    .unwrap();

    migrator.run(&db).await.unwrap();

    let events = paid(&db).await;
    let told: Vec<_> = events
        .iter()
        .map(|event| match &event.body {
            EventBody::OrderPaid {
                order_id,
                amount,
                plan,
                ..
            } => (
                event.id.as_str(),
                order_id.as_str(),
                event.occurred_at.to_string(),
                amount.fen(),
                plan.max_devices,
            ),
            other => panic!("{other:?}"),
        })
        .collect();
    let at = |day: u8| format!("2026-01-0{day}T03:04:05.678Z");
    assert_eq!(
        told,
        [
            (
                "waits",
                "o1",
                "2026-01-01T00:00:00.000Z".to_owned(),
                9_900,
                5
            ),
            ("paid-o1", "o1", at(3), 9_900, 5),
            ("paid-o2", "o2", at(4), 9_900, 5),
        ]
    );
    // Nobody but the quotas is to hear of them again.
    let waiting: Vec<(String, String)> = sqlx::query_as(
        "select s.consumer, o.id from platform.outbox o join platform.subscriptions s on s.kind = o.kind
        where not exists (select 1 from platform.consumed_events c where c.consumer = s.consumer and c.event_id = o.id)
        order by 1, 2",
    )
    .fetch_all(&db)
    .await
    .unwrap();
    assert_eq!(
        json!(waiting),
        json!([
            ["device-quotas", "paid-o1"],
            ["device-quotas", "paid-o2"],
            ["device-quotas", "waits"],
            ["notifications", "waits"],
        ])
    );
}

//! Plans are public.

use serde_json::json;
use sqlx::PgPool;

use crate::app::TestApp;

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_built_in_plans_are_there_for_everybody(db: PgPool) {
    let app = TestApp::closed(db).await;
    let anybody = app.anybody().elsewhere();

    let active = anybody.get("/plans/active").await.is(200);
    let page = anybody
        .get("/billing/plans?pageSize=3&page=2")
        .await
        .is(200);

    let plans: Vec<_> = active
        .as_array()
        .unwrap()
        .iter()
        .map(|plan| {
            (
                plan["id"].clone(),
                plan["price"].clone(),
                plan["maxDevices"].clone(),
            )
        })
        .collect();
    let expected = [
        ("free", 0, 1),
        ("basic", 99, 5),
        ("pro", 299, 20),
        ("enterprise", 999, 100),
    ];
    assert_eq!(
        plans,
        expected.map(|(id, price, devices)| (json!(id), json!(price), json!(devices)))
    );
    assert_eq!(
        (&page["total"], &page["totalPages"]),
        (&json!(4), &json!(2))
    );
    assert_eq!(page["data"], page["items"]);
    assert_eq!(page["data"][0]["id"], "enterprise");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_plan_shows_every_field_and_an_unknown_one_is_not_found(db: PgPool) {
    let app = TestApp::new(db).await;
    let anybody = app.anybody();

    let plan = anybody.get("/plans/pro").await.is(200);

    for (field, value) in [
        ("code", json!("pro")),
        ("type", json!("pro")),
        ("currency", json!("CNY")),
        ("billingCycle", json!("monthly")),
        ("duration", json!(30)),
        ("deviceLimit", json!(20)),
        ("deviceQuota", json!(20)),
        ("memoryMB", json!(4096)),
        ("createdAt", json!("2025-01-01T00:00:00.000Z")),
    ] {
        assert_eq!(plan[field], value, "{field}");
    }
    assert!(plan.get("originalPrice").is_none());
    assert_eq!(anybody.get("/billing/plans/pro/").await.is(200), plan);
    anybody.get("/plans/nope").await.refused(404, "NOT_FOUND");
    anybody.get("/plans/%00").await.refused(404, "NOT_FOUND");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn every_route_is_described_once(db: PgPool) {
    let app = TestApp::new(db).await;

    let document = serde_json::to_value(&app.openapi).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let mut ids: Vec<_> = paths
        .values()
        .flat_map(|item| item.as_object().unwrap().values())
        .filter_map(|operation| operation.get("operationId"))
        .map(|id| id.as_str().unwrap())
        .collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();

    assert_eq!(ids.len(), count);
    assert!(paths.contains_key("/orders/{id}") && paths.contains_key("/billing/orders/{id}"));
}

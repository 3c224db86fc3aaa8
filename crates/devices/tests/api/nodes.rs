//! Nodes as rows: known from the settings and through the API, closed and opened, removed when they are empty.

use std::net::IpAddr;

use devices::node::settings::parse;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{TestApp, User, text};

/// A node for simulated devices on an address of its own.
pub fn simulated(name: &str, address: IpAddr, more: Value) -> Value {
    let mut node = json!({ "name": name, "runtime": "simulated", "address": address.to_string() });
    let more = more.as_object().cloned().unwrap_or_default();
    node.as_object_mut().unwrap().extend(more);
    node
}

/// Another loopback address than that of the app, the same for the same number.
pub fn beside(app: &TestApp, number: u8) -> IpAddr {
    let IpAddr::V4(address) = app.config.node_address else {
        unreachable!("the address of a test is one of IPv4");
    };
    let [_, _, a, b] = address.octets();
    [127, 78 + number, a, b].into()
}

/// The names of the nodes in a page, in its order.
async fn names(admin: &User, query: &str) -> Vec<String> {
    let page = admin.get(&format!("/nodes{query}")).await;
    let page = page.expect(StatusCode::OK).body;
    let nodes = page["data"].as_array().unwrap();
    nodes.iter().map(|node| text(node, "name")).collect()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_short_settings_make_one_node_without_limits(db: PgPool) {
    let app = TestApp::new(db).await;
    let admin = app.user("root", &["admin"]).await;

    let node = admin.get("/nodes/local").await.expect(StatusCode::OK).body;

    let address = app.config.node_address.to_string();
    assert_eq!(
        node,
        json!({
            "id": "local", "name": "local", "runtime": "simulated", "hostsSimulated": true, "address": address, "bind": address,
            "status": "ready", "since": node["since"], "labels": {}, "capacity": { "cpuOvercommit": 1.0 },
            "used": { "cpuCores": 0.0, "memoryMB": 0, "devices": 0 }, "devices": 0,
            "createdAt": node["createdAt"], "updatedAt": node["updatedAt"],
        })
    );
    let alice = app.user("alice", &[]).await;
    for (method, path) in [
        ("GET", "/nodes"),
        ("GET", "/nodes/local"),
        ("POST", "/nodes/local/cordon"),
        ("DELETE", "/nodes/local"),
    ] {
        alice
            .send(method, path, Value::Null)
            .await
            .refused(StatusCode::FORBIDDEN, "FORBIDDEN");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn nodes_of_the_settings_take_the_place_of_the_short_form(db: PgPool) {
    let list = r#"[{"name": "b", "runtime": "simulated", "address": "127.0.0.1", "labels": {"disk": "fast"}, "memoryMB": 9000},
        {"name": "a", "endpoint": "unix:///nowhere/docker.sock", "address": "10.0.0.5", "cpuCores": 4, "cpuOvercommit": 2.5,
         "tls": {"ca": "/etc/ca.pem", "cert": "/etc/cert.pem", "key": "/etc/key.pem"}}]"#;
    let app = TestApp::with(db, |config| config.nodes = parse(list).unwrap()).await;
    let admin = app.user("root", &["admin"]).await;

    assert_eq!(names(&admin, "").await, ["a", "b"]);
    assert_eq!(names(&admin, "?page=2&pageSize=1").await, ["b"]);
    let node = admin.get("/nodes/a").await.expect(StatusCode::OK).body;
    assert_eq!(
        (&node["runtime"], &node["capacity"], &node["tls"]["key"]),
        (
            &json!("docker"),
            &json!({ "cpuCores": 10.0, "cpuOvercommit": 2.5 }),
            &json!("/etc/key.pem")
        )
    );

    // What operators changed stays when a replica with the same settings starts; what the settings say comes back.
    let change = json!({ "labels": { "disk": "slow" }, "devices": 7 });
    let changed = admin.send("PATCH", "/nodes/b", change).await;
    assert_eq!(
        changed.expect(StatusCode::OK).body["labels"]["disk"],
        "slow"
    );
    admin
        .post("/nodes/b/cordon", json!({}))
        .await
        .expect(StatusCode::OK);
    app.another().await;
    let node = admin.get("/nodes/b").await.expect(StatusCode::OK).body;
    assert_eq!(
        (
            &node["labels"]["disk"],
            &node["capacity"]["devices"],
            &node["status"]
        ),
        (&json!("fast"), &json!(7), &json!("cordoned"))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_node_comes_and_goes_through_the_api(db: PgPool) {
    let app = TestApp::new(db).await;
    let admin = app.user("root", &["admin"]).await;
    let alice = app.user("alice", &[]).await;
    let node = simulated(
        "second",
        beside(&app, 1),
        json!({ "labels": { "zone": "b" } }),
    );

    admin
        .post("/nodes", node.clone())
        .await
        .expect(StatusCode::CREATED);
    admin
        .post("/nodes", node.clone())
        .await
        .refused(StatusCode::CONFLICT, "CONFLICT");
    admin
        .post("/nodes", json!({ "name": "third", "address": "h" }))
        .await
        .refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    let wish = json!({ "name": "n", "metadata": { "nodeSelector": { "zone": "b" } } });
    let device = alice.create(wish.clone()).await;
    assert_eq!(device["adbHost"], beside(&app, 1).to_string());

    admin
        .send("DELETE", "/nodes/second", Value::Null)
        .await
        .refused(StatusCode::CONFLICT, "CONFLICT");
    alice.delete(&device).await.expect(StatusCode::OK);
    app.run_operations().await;
    admin
        .send("DELETE", "/nodes/second", Value::Null)
        .await
        .expect(StatusCode::OK);

    assert_eq!(names(&admin, "").await, ["local"]);
    admin
        .get("/nodes/second")
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    let refused = alice.post("/devices", wish.clone()).await;
    let refused = refused.refused(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY");
    assert!(text(&refused.body, "message").contains("1 node: has no label zone=b"));
    // The name may come back.
    admin.post("/nodes", node).await.expect(StatusCode::CREATED);
    alice.create(wish).await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_closed_node_gets_no_devices_and_keeps_those_it_has(db: PgPool) {
    let app = TestApp::new(db).await;
    let admin = app.user("root", &["admin"]).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;

    for (way, status) in [("cordon", "cordoned"), ("drain", "draining")] {
        let path = format!("/nodes/local/{way}");
        let node = admin.post(&path, json!({ "reason": "new disk" })).await;
        let node = node.expect(StatusCode::OK).body;
        assert_eq!(
            (&node["status"], &node["reason"], &node["devices"]),
            (&json!(status), &json!("new disk"), &json!(1))
        );
        let refused = alice.post("/devices", json!({ "name": "n" })).await;
        let refused = refused.refused(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY");
        let message = text(&refused.body, "message");
        assert!(message.ends_with(&format!("1 node: {status}")), "{message}");
        let refused = admin.post("/devices", json!({ "name": "n" })).await;
        let refused = refused.refused(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY");
        let message = text(&refused.body, "message");
        assert!(message.ends_with(&format!("local: {status}")), "{message}");
        for action in ["stop", "start"] {
            alice.act(&device, action).await.expect(StatusCode::OK);
            app.run_operations().await;
        }
        assert_eq!(alice.status(&device).await, "running");
    }

    admin
        .post("/nodes/local/uncordon", Value::Null)
        .await
        .expect(StatusCode::OK);
    alice.create(json!({ "name": "n" })).await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_node_changes_its_runtime_only_where_no_device_is_lost_by_it(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let admin = app.user("root", &["admin"]).await;
    let alice = app.user("alice", &[]).await;
    let runtime = async || {
        let node = admin.get("/nodes/local").await.expect(StatusCode::OK);
        text(&node.body, "runtime")
    };
    let device = alice.running().await;
    let told = |hosts: bool| {
        let node = json!([{ "name": "local", "endpoint": "unix:///nowhere/docker.sock", "hostsSimulated": hosts,
            "address": app.config.node_address.to_string() }]);
        let mut config = app.config.clone();
        config.nodes = parse(&node.to_string()).unwrap();
        config
    };

    // Its simulated devices would have nobody.
    TestApp::on(&app.platform, told(false)).await;
    assert_eq!(runtime().await, "simulated");
    // They stay beside the containers.
    TestApp::on(&app.platform, told(true)).await;
    assert_eq!(runtime().await, "docker");
    alice.act(&device, "restart").await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "running");

    // A replica that finds no engine on its machine does not speak for the others.
    let mut auto = app.config.clone();
    auto.runtime = devices::config::RuntimeChoice::Auto;
    auto.docker_host = "unix:///nowhere/docker.sock".into();
    TestApp::on(&app.platform, auto).await;
    assert_eq!(runtime().await, "docker");
    // An operator does.
    app.another().await;
    assert_eq!(runtime().await, "simulated");
}

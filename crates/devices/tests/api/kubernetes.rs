//! Devices in pods. No cluster can be started here, so that a stand-in for its API server takes its place.

use std::time::Duration;

use devices::device::RuntimeKind;
use devices::node::settings;
use devices::runtime::{Runtime, RuntimeError, Seen, Spec};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::app::{TestApp, id, ports, text};
use crate::cluster::Cluster;

/// A replica with one node, `pods`, in this cluster.
async fn app(db: PgPool, cluster: &Cluster) -> TestApp {
    TestApp::with(db, |config| {
        let node = json!([{ "name": "pods", "runtime": "kubernetes", "endpoint": cluster.endpoint(), "address": "10.0.0.5",
            "cpuOvercommit": 2 }]);
        config.nodes = settings::parse(&node.to_string()).unwrap();
        config.ports.adb = 30_000..=30_999;
        config.ports.webrtc = 31_000..=31_999;
        config.ports.scrcpy = 32_000..=32_767;
        config.orphan_grace = Duration::ZERO;
    })
    .await
}

fn runtime(app: &TestApp) -> std::sync::Arc<dyn Runtime> {
    let runtimes = app.devices.runtimes();
    runtimes.of(RuntimeKind::Kubernetes, "pods").unwrap()
}

/// What a runtime is told of a device, by a worker with this token.
async fn spec(app: &TestApp, device: &Value, fence: i64) -> Spec {
    let mut conn = app.platform.db.acquire().await.unwrap();
    let stored = devices::device::db::find(&mut conn, &id(device)).await;
    Spec::of(&stored.unwrap().unwrap(), fence)
}

async fn reconcile(app: &TestApp) {
    let never = CancellationToken::new();
    let round = devices::reconcile::job::run(&app.devices, &never).await;
    round.unwrap();
    app.run_operations().await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_lives_and_dies_in_a_pod(db: PgPool) {
    let cluster = Cluster::start().await;
    let app = app(db, &cluster).await;
    let alice = app.user("alice", &[]).await;

    let device = alice.running().await;
    assert_eq!(device["status"], "running", "{device}");
    let name = format!("cp-{}", id(&device));
    let pod = cluster.object("pods", &name).unwrap();
    let service = cluster.object("services", &name).unwrap();
    let claim = cluster.object("persistentvolumeclaims", &name).unwrap();
    for object in [&pod, &service, &claim] {
        let labels = &object["metadata"]["labels"];
        assert_eq!(labels["cloudphone.device"], id(&device).to_string());
        assert_eq!(labels["cloudphone.cluster"], app.cluster().await);
        let fence = text(labels, "cloudphone.fence").parse::<i64>().unwrap();
        assert!(fence > 0);
    }
    let set = ports(&device);
    let leading = service["spec"]["ports"].as_array().unwrap();
    let leading: Vec<_> = leading
        .iter()
        .map(|port| (port["targetPort"].clone(), port["nodePort"].clone()))
        .collect();
    let expected = [(5555, set.adb), (8080, set.webrtc), (27_183, set.scrcpy)];
    assert_eq!(
        leading,
        expected.map(|(inside, outside)| (json!(inside), json!(outside)))
    );
    let resources = &pod["spec"]["containers"][0]["resources"];
    assert_eq!(
        resources["limits"],
        json!({ "cpu": "2000m", "memory": "4096Mi" })
    );
    assert_eq!(resources["requests"]["cpu"], "1000m");
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "10240Mi");

    alice.act(&device, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "stopped");
    assert_eq!(cluster.object("pods", &name), None);

    alice.act(&device, "start").await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "running");
    alice.act(&device, "restart").await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "running");
    let again = cluster.object("pods", &name).unwrap();
    assert_ne!(again["metadata"]["uid"], pod["metadata"]["uid"]);
    let kept = cluster.object("persistentvolumeclaims", &name).unwrap();
    assert_eq!(kept["metadata"]["uid"], claim["metadata"]["uid"]);

    alice.delete(&device).await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(cluster.everything(), Vec::<String>::new());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_pod_is_measured_by_the_metrics_of_its_cluster(db: PgPool) {
    let cluster = Cluster::start().await;
    let app = app(db, &cluster).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let name = format!("cp-{}", id(&device));
    let measured = async || {
        sqlx::query("update devices.readings set slot = slot - interval '1 hour'")
            .execute(&app.platform.db)
            .await
            .unwrap();
        app.platform.clock.advance(chrono::TimeDelta::seconds(15));
        devices::measure::collect::step(&app.devices).await.unwrap();
        let path = format!("/devices/{}/metrics", id(&device));
        let shown = alice.get(&path).await.expect(StatusCode::OK).body;
        (shown["cpuUsage"].clone(), shown["memoryUsed"].clone())
    };

    // A pod that was not measured yet, or a cluster that measures none.
    assert_eq!(measured().await, (json!(0.0), json!(0.0)));

    let usage =
        |cpu: &str, memory: &str| json!({ "name": "c", "usage": { "cpu": cpu, "memory": memory } });
    let containers = json!([usage("250000000n", "512Mi"), usage("250m", "524288Ki")]);
    let metrics =
        json!({ "kind": "PodMetrics", "metadata": {}, "window": "15s", "containers": containers });
    cluster.put("metrics", &name, metrics);
    assert_eq!(measured().await, (json!(25.0), json!(1024.0)));
    assert_eq!(measured().await, (json!(25.0), json!(1024.0)));

    cluster.put(
        "metrics",
        &name,
        json!({ "metadata": {}, "containers": [usage("a lot", "1")] }),
    );
    assert_eq!(measured().await, (json!(25.0), json!(1024.0)));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_snapshot_is_refused_and_nothing_is_queued_for_it(db: PgPool) {
    let cluster = Cluster::start().await;
    let app = app(db, &cluster).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;

    let path = format!("/devices/{}/snapshots", id(&device));
    let taken = alice.post(&path, json!({ "name": "first" })).await;

    let refused = taken.refused(StatusCode::CONFLICT, "NOT_SUPPORTED").body;
    let reason = "runs in kubernetes, which keeps no snapshots";
    assert!(text(&refused, "message").contains(reason), "{refused}");
    assert_eq!(alice.get(&path).await.body, json!([]));
    let runtime = runtime(&app);
    let spec = spec(&app, &device, i64::MAX).await;
    let snapshot = contracts::SnapshotId::new();
    let error = runtime.snapshot(&spec, &snapshot).await.unwrap_err();
    assert_eq!(error.to_string(), "kubernetes cannot keep a snapshot");
    assert!(!runtime.forget(&snapshot).await.unwrap());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn every_step_may_be_repeated_and_be_done_by_two_at_once(db: PgPool) {
    let cluster = Cluster::start().await;
    let app = app(db, &cluster).await;
    let other = app.another().await;
    let alice = app.user("alice", &[]).await;
    let body = json!({ "name": "n", "autoStart": false });
    let device = alice.create(body).await;
    let (one, two) = (runtime(&app), runtime(&other));
    let spec = spec(&app, &device, 5).await;

    for _ in 0..2 {
        let (a, b) = tokio::join!(one.create(&spec), two.create(&spec));
        for done in [a, b] {
            done.unwrap();
        }
        assert_eq!(one.inspect(&spec.id).await.unwrap(), Seen::Stopped);
    }
    for _ in 0..2 {
        let (a, b) = tokio::join!(one.start(&spec), two.start(&spec));
        for done in [a, b] {
            done.unwrap();
        }
        assert_eq!(two.inspect(&spec.id).await.unwrap(), Seen::Running);
    }
    assert_eq!(cluster.everything().len(), 3);
    for _ in 0..2 {
        let (a, b) = tokio::join!(one.stop(&spec), two.stop(&spec));
        for done in [a, b] {
            done.unwrap();
        }
        assert_eq!(one.inspect(&spec.id).await.unwrap(), Seen::Stopped);
    }
    for _ in 0..2 {
        let (a, b) = tokio::join!(one.remove(&spec.id), two.remove(&spec.id));
        for done in [a, b] {
            done.unwrap();
        }
        assert_eq!(one.inspect(&spec.id).await.unwrap(), Seen::Absent);
    }
    one.stop(&spec).await.unwrap();
    assert_eq!(cluster.everything(), Vec::<String>::new());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_worker_that_comes_late_changes_nothing(db: PgPool) {
    let cluster = Cluster::start().await;
    let app = app(db, &cluster).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let runtime = runtime(&app);
    let late = spec(&app, &device, 100).await;
    let later = spec(&app, &device, 101).await;

    // Others that are quicker with what the worker changes cost it a look more.
    cluster.interfere(3);
    runtime.create(&later).await.unwrap();
    cluster.requests();

    for refused in [
        runtime.create(&late).await,
        runtime.start(&late).await,
        runtime.stop(&late).await,
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, RuntimeError::Fenced), "{error}");
    }
    let requests = cluster.requests();
    assert!(
        requests.iter().all(|it| it.starts_with("GET")),
        "{requests:?}"
    );
    assert_eq!(runtime.inspect(&late.id).await.unwrap(), Seen::Running);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_worker_that_is_overtaken_on_its_way_leaves_nothing(db: PgPool) {
    let cluster = Cluster::start().await;
    let app = app(db, &cluster).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let runtime = runtime(&app);
    let late = spec(&app, &device, 100).await;
    let mut later = spec(&app, &device, 101).await;
    let name = format!("cp-{}", late.id);
    cluster.lose("pods", &name);
    let overtaken = |outcome: Result<(), RuntimeError>| {
        assert!(matches!(outcome, Err(RuntimeError::Fenced)), "{outcome:?}");
    };

    // The pod that it asked for comes after another worker has stopped the device.
    cluster.hold_back("POST pods");
    let (outcome, ()) = tokio::join!(runtime.start(&late), async {
        cluster.holds().await;
        runtime.stop(&later).await.unwrap();
        cluster.let_go();
    });
    overtaken(outcome);
    let pod = cluster.object("pods", &name).unwrap();
    assert!(pod["metadata"]["deletionTimestamp"].is_string(), "{pod}");

    // So do the ports that it wanted, after another one gave the device others.
    let (mut late, ports) = (spec(&app, &device, 102).await, later.ports);
    late.ports.adb = ports.adb + 1;
    later.ports.adb = ports.adb + 2;
    later.fence = 103;
    cluster.hold_back("PUT services");
    let (outcome, ()) = tokio::join!(runtime.start(&late), async {
        cluster.holds().await;
        runtime.start(&later).await.unwrap();
        cluster.let_go();
    });
    overtaken(outcome);
    let service = cluster.object("services", &name).unwrap();
    assert_eq!(service["spec"]["ports"][0]["nodePort"], later.ports.adb);

    // All of it is owned by the claim, and goes with it.
    let claim = cluster.object("persistentvolumeclaims", &name).unwrap();
    for kind in ["pods", "services"] {
        let owner = &cluster.object(kind, &name).unwrap()["metadata"]["ownerReferences"][0];
        assert_eq!(owner["uid"], claim["metadata"]["uid"], "{kind}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_port_that_another_service_has_is_exchanged(db: PgPool) {
    let cluster = Cluster::start().await;
    let app = app(db, &cluster).await;
    let alice = app.user("alice", &[]).await;
    let created = alice.create(json!({ "name": "n" })).await;
    let taken = ports(&created).webrtc;
    let foreign = json!({ "spec": { "ports": [{ "port": 80, "nodePort": taken }] } });
    cluster.put("services", "foreign", foreign);

    app.run_operations().await;

    let device = alice.device(&created).await;
    assert_eq!(device["status"], "running", "{device}");
    assert_ne!(ports(&device).webrtc, taken);
    let name = format!("cp-{}", id(&device));
    let service = cluster.object("services", &name).unwrap();
    assert_eq!(
        service["spec"]["ports"][1]["nodePort"],
        ports(&device).webrtc
    );
    assert_eq!(cluster.names("services").len(), 2);

    // A service that was made for other ports leads to those of the device when it starts again.
    let runtime = runtime(&app);
    let mut moved = spec(&app, &device, i64::MAX).await;
    moved.ports.adb = 30_999;
    cluster.interfere(1);
    runtime.create(&moved).await.unwrap();
    cluster.interfere(1);
    runtime.start(&moved).await.unwrap();
    let service = cluster.object("services", &name).unwrap();
    assert_eq!(service["spec"]["ports"][0]["nodePort"], 30_999);

    moved.ports.adb = 5_555;
    let error = runtime.start(&moved).await.unwrap_err();
    let told = platform::problem::causes(&error);
    assert!(
        told.contains("DEVICE_ADB_PORTS") && told.contains("30000-32767"),
        "{told}"
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_hurt_is_put_right_and_what_no_device_has_goes(db: PgPool) {
    let cluster = Cluster::start().await;
    let app = app(db, &cluster).await;
    let alice = app.user("alice", &[]).await;
    let mut hurt = Vec::new();
    for _ in 0..3 {
        hurt.push(alice.running().await);
    }
    let name = |device: &Value| format!("cp-{}", id(device));
    reconcile(&app).await;
    let before = cluster.everything();

    cluster.lose("pods", &name(&hurt[0]));
    cluster.end(&name(&hurt[1]));
    cluster.lose("services", &name(&hurt[2]));
    let labels =
        json!({ "cloudphone.device": "nobody", "cloudphone.cluster": app.cluster().await });
    for kind in ["services", "persistentvolumeclaims"] {
        cluster.put(
            kind,
            "cp-nobody",
            json!({ "metadata": { "labels": labels } }),
        );
    }
    let other = json!({ "cloudphone.device": "nobody", "cloudphone.cluster": "another" });
    cluster.put(
        "services",
        "theirs",
        json!({ "metadata": { "labels": other } }),
    );
    reconcile(&app).await;
    reconcile(&app).await;

    let mut after = cluster.everything();
    after.retain(|object| object != "services/theirs");
    assert_eq!(after, before);
    assert!(cluster.object("services", "theirs").is_some());
    for device in &hurt {
        assert_eq!(alice.status(device).await, "running");
        let seen = runtime(&app).inspect(&id(device)).await.unwrap();
        assert_eq!(seen, Seen::Running);
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_bears_our_name_and_is_not_ours_is_not_touched(db: PgPool) {
    let cluster = Cluster::start().await;
    let app = app(db, &cluster).await;
    let alice = app.user("alice", &[]).await;
    let device = alice
        .create(json!({ "name": "n", "autoStart": false }))
        .await;
    let name = format!("cp-{}", id(&device));
    cluster.put("persistentvolumeclaims", &name, json!({}));
    let runtime = runtime(&app);
    let spec = spec(&app, &device, 5).await;

    let error = runtime.create(&spec).await.unwrap_err();

    let told = platform::problem::causes(&error);
    assert!(told.contains("is not ours"), "{told}");
    assert_eq!(runtime.inspect(&spec.id).await.unwrap(), Seen::Absent);
    runtime.remove(&spec.id).await.unwrap();
    assert!(cluster.object("persistentvolumeclaims", &name).is_some());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_cluster_that_does_not_answer_gets_no_devices_until_it_does(db: PgPool) {
    let cluster = Cluster::start().await;
    let app = app(db, &cluster).await;
    let alice = app.user("alice", &[]).await;
    let small = || json!({ "name": "n" });

    cluster.fall_silent(true);
    let refused = alice.post("/devices", small()).await;
    refused.refused(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY");
    cluster.fall_silent(false);

    // Who is let in no more reads anew what he authenticates himself with.
    cluster.admit("second");
    let refused = alice.post("/devices", small()).await;
    refused.refused(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY");
    cluster.hand_out("second");
    let device = alice.running().await;
    assert_eq!(device["status"], "running", "{device}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_report_on_a_cluster_tells_what_is_missing(db: PgPool) {
    let cluster = Cluster::start().await;
    let app = app(db, &cluster).await;
    let admin = app.user("root", &["admin"]).await;
    let check = async || {
        let report = admin.get("/nodes/pods/check").await.expect(StatusCode::OK);
        report.body["checks"].as_array().unwrap().clone()
    };
    let of = |checks: &[Value], name: &str| {
        let check = checks.iter().find(|check| check["name"] == name);
        let check = check.unwrap();
        (text(check, "status"), text(check, "found"))
    };

    let checks = check().await;
    let version = "Kubernetes v1.33.0, namespace phones".to_owned();
    assert_eq!(of(&checks, "engine"), ("ok".into(), version));
    assert_eq!(of(&checks, "permissions").0, "ok");
    assert_eq!(of(&checks, "ports").0, "ok");
    assert_eq!(cluster.everything(), Vec::<String>::new());

    cluster.forbid("delete pods");
    let checks = check().await;
    let expected = ("fail".to_owned(), "may not delete pods".to_owned());
    assert_eq!(of(&checks, "permissions"), expected);

    // An endpoint of another kind is refused; one that is left out stays.
    let change = json!({ "endpoint": "unix:///run/docker.sock" });
    let refused = admin.send("PATCH", "/nodes/pods", change).await;
    refused.refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
}

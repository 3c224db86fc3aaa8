//! Domain events become one notification each.

use contracts::event::PlanTerms;
use contracts::{DeviceId, EventBody, Money, OrderId, PlanId, SessionId};
use platform::events::spawn_relay;
use serde_json::json;
use sqlx::PgPool;

use crate::app::{Cluster, id, until, with_sweep, without_sweep_or_checks};

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn each_event_is_told_once_with_its_pushes(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    spawn_relay(&cluster.first.platform, &cluster.tasks);
    spawn_relay(&cluster.second.platform, &cluster.tasks);
    let alice = cluster.sign_in("alice", &["user"]).await;
    let mut socket = cluster
        .second
        .connect(&format!("/notifications?token={alice}"))
        .await;
    socket.event("unread-count").await;
    let paid = EventBody::OrderPaid {
        order_id: OrderId::new(),
        order_no: "77".into(),
        plan_id: "basic".parse::<PlanId>().unwrap(),
        amount: Money::yuan(99),
        payment_no: Some("P1".into()),
        plan: PlanTerms {
            name: "Basic".into(),
            days: 30,
            max_devices: 5,
            cpu_cores: 2,
            memory_mb: 2_048,
            storage_mb: 16_384,
            storage_quota_gb: 80,
            traffic_quota_gb: 500,
        },
    };

    cluster.emit(&cluster.event("alice", paid)).await;

    let notification = socket.event("notification").await;
    assert_eq!(
        (&notification["event"], &notification["type"]),
        (&json!("order.paid"), &json!("billing"))
    );
    assert_eq!(notification["data"]["orderNo"], "77");
    let order = socket.event("order-status-changed").await;
    assert_eq!(
        (&order["status"], &order["orderNo"], &order["amount"]),
        (&json!("paid"), &json!("77"), &json!(99))
    );
    assert_eq!(socket.event("payment-success").await["paymentNo"], "P1");
    assert!(socket.is_quiet().await);
    let list = cluster.first.get("/notifications", &alice).await.body;
    assert_eq!(list["total"], 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_is_shown_on_its_way_and_told_when_it_is_there(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    spawn_relay(&cluster.first.platform, &cluster.tasks);
    let mut socket = cluster.second.connect("/notifications?userId=alice").await;
    socket.event("unread-count").await;
    let device = DeviceId::new();
    let change = |from: &str, to: &str| EventBody::DeviceStatusChanged {
        device_id: device.clone(),
        name: "phone".into(),
        status: to.into(),
        previous_status: from.into(),
        error: None,
    };

    cluster
        .emit(&cluster.event("alice", change("creating", "starting")))
        .await;
    assert_eq!(
        socket.event("device-status-changed").await["status"],
        "starting"
    );
    cluster
        .emit(&cluster.event("alice", change("starting", "running")))
        .await;

    assert_eq!(
        socket.event("notification").await["event"],
        "device.started"
    );
    let push = socket.event("device-status-changed").await;
    assert_eq!(
        (&push["deviceName"], &push["previousStatus"]),
        (&json!("phone"), &json!("starting"))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn every_kind_of_event_has_words(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    spawn_relay(&cluster.first.platform, &cluster.tasks);
    let alice = cluster.sign_in("alice", &["user"]).await;
    let (order_id, order_no, amount) = (OrderId::new(), "7".to_owned(), Money::yuan(1));
    let device = || (DeviceId::new(), "d".to_owned());
    let change = |status: &str| {
        let (device_id, name) = device();
        let error = (status == "error").then(|| "image missing".to_owned());
        EventBody::DeviceStatusChanged {
            device_id,
            name,
            status: status.into(),
            previous_status: "x".into(),
            error,
        }
    };
    let bodies = vec![
        (
            "user.registered",
            EventBody::UserRegistered {
                username: "alice".into(),
            },
        ),
        ("user.password_changed", EventBody::PasswordChanged {}),
        (
            "user.locked",
            EventBody::UserLocked {
                until: cluster.first.platform.clock.now(),
            },
        ),
        (
            "device.created",
            EventBody::DeviceCreated {
                device_id: device().0,
                name: "d".into(),
            },
        ),
        ("device.started", change("running")),
        ("device.stopped", change("stopped")),
        ("device.error", change("error")),
        (
            "device.deleted",
            EventBody::DeviceDeleted {
                device_id: device().0,
                name: "d".into(),
            },
        ),
        (
            "app.uploaded",
            EventBody::AppUploaded {
                app_id: contracts::AppId::new(),
                package_name: "a.b".into(),
                version_code: 3,
            },
        ),
        (
            "app.reviewed",
            EventBody::AppReviewed {
                app_id: contracts::AppId::new(),
                name: "a".into(),
                version_name: "3".into(),
                status: "rejected".into(),
                comment: Some("no icon".into()),
            },
        ),
        (
            "order.expired",
            EventBody::OrderExpired {
                order_id: order_id.clone(),
                order_no: order_no.clone(),
                amount,
            },
        ),
        (
            "order.cancelled",
            EventBody::OrderCancelled {
                order_id: order_id.clone(),
                order_no: order_no.clone(),
                amount,
            },
        ),
        (
            "payment.failed",
            EventBody::PaymentFailed {
                order_id: order_id.clone(),
                order_no: order_no.clone(),
                amount,
            },
        ),
        (
            "payment.refunded",
            EventBody::PaymentRefunded {
                order_id,
                order_no,
                amount,
            },
        ),
        (
            "task.finished",
            EventBody::TaskFinished {
                task_id: contracts::TaskId::new(),
                kind: "stitch_image".into(),
                status: "completed".into(),
                error_code: None,
            },
        ),
    ];

    for (_, body) in &bodies {
        cluster.emit(&cluster.event("alice", body.clone())).await;
    }

    let list = async || {
        cluster
            .second
            .get("/notifications?pageSize=50", &alice)
            .await
            .body
    };
    until("every notification", async || {
        list().await["total"] == bodies.len()
    })
    .await;
    let list = list().await;
    let mut told: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["event"].as_str().unwrap())
        .collect();
    let mut expected: Vec<_> = bodies.iter().map(|(name, _)| *name).collect();
    told.sort_unstable();
    expected.sort_unstable();
    assert_eq!(told, expected);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_news_that_a_session_ended_closes_its_sockets_everywhere(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    spawn_relay(&cluster.first.platform, &cluster.tasks);
    let platform = &cluster.first.platform;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let mut socket = cluster
        .second
        .connect(&format!("/notifications?token={alice}"))
        .await;
    socket.event("welcome").await;
    let session: SessionId = platform
        .auth
        .tokens()
        .verify(&alice, platform.clock.now())
        .unwrap()
        .identity
        .session_id;

    platform
        .auth
        .sessions()
        .end(&session, platform.clock.now())
        .await
        .unwrap();
    let ended = contracts::Event::new(
        id("alice"),
        platform.clock.now(),
        EventBody::SessionEnded {
            session_id: session,
        },
    );
    cluster.emit(&ended).await;

    assert_eq!(u16::from(socket.closed().await.unwrap().code), 1008);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_instance_that_learns_of_an_ended_session_closes_its_own_sockets_too(db: PgPool) {
    let cluster = Cluster::new(db, without_sweep_or_checks()).await;
    spawn_relay(&cluster.first.platform, &cluster.tasks);
    let platform = &cluster.first.platform;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let path = format!("/notifications?token={alice}");
    let mut sockets = [
        cluster.first.connect(&path).await,
        cluster.second.connect(&path).await,
    ];
    for socket in &mut sockets {
        socket.event("welcome").await;
    }
    let now = platform.clock.now();
    let claims = platform.auth.tokens().verify(&alice, now).unwrap();
    let session_id = claims.identity.session_id;

    platform
        .auth
        .sessions()
        .end(&session_id, now)
        .await
        .unwrap();
    let ended = cluster.event("alice", EventBody::SessionEnded { session_id });
    cluster.emit(&ended).await;

    for socket in &mut sockets {
        assert_eq!(u16::from(socket.closed().await.unwrap().code), 1008);
    }
}

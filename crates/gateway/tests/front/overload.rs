//! What becomes of more requests than can be served at once.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use contracts::Service;
use futures::future::join_all;
use gateway::front::{Directory, FrontConfig, Overload};
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::backend::Backend;
use crate::door::{Door, directory, eventually};

/// An instance that answers as often as it is told to.
async fn holding(name: &str) -> (Backend, Arc<Semaphore>) {
    let answers = Arc::new(Semaphore::new(0));
    let held = answers.clone();
    let router = Router::new().fallback(move || {
        let held = held.clone();
        async move { held.acquire().await.unwrap().forget() }
    });
    (Backend::serve(name, router).await, answers)
}

async fn door(overload: Overload, directory: Directory) -> Door {
    let config = FrontConfig {
        overload,
        reply_within: Duration::from_secs(600),
        ..FrontConfig::default()
    };
    Door::before(config, directory, None).await
}

fn requests(door: &Door, service: Service) -> Value {
    door.report(service)["requests"].clone()
}

#[tokio::test]
async fn requests_beyond_the_places_wait_and_beyond_the_queue_they_are_refused() {
    let (slow, answers) = holding("slow").await;
    let overload = Overload {
        places: 2,
        service_percent: 100,
        queue: 1,
        queue_within: Duration::from_secs(600),
        ..Overload::default()
    };
    let door = door(overload, directory(Service::Users, &[slow.upstream()])).await;
    let waiting = join_all((0..3).map(|_| door.post("/users", "x")));
    tokio::pin!(waiting);
    let full = eventually("two are served and one waits", || async {
        slow.hits() == 2 && requests(&door, Service::Users)["queued"] == 1
    });
    tokio::select! { _ = &mut waiting => panic!("none was answered"), () = full => {} }

    let refused = door.get("/users").await;
    refused.expect_problem(503, "OVERLOADED");
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(
        door.get("/health").await.status,
        200,
        "probes are never refused"
    );
    assert_eq!(door.get("/metrics").await.status, 200);
    let told = requests(&door, Service::Users);
    assert_eq!(
        (
            &told["inFlight"],
            &told["places"],
            &told["queue"],
            &told["shed"]
        ),
        (&2.into(), &2.into(), &1.into(), &1.into())
    );
    assert_eq!(slow.hits(), 2);

    answers.add_permits(3);
    for reply in waiting.await {
        assert_eq!(reply.status, 200, "who waited was served");
    }
    let told = requests(&door, Service::Users);
    assert_eq!((&told["inFlight"], &told["queued"]), (&0.into(), &0.into()));
}

#[tokio::test]
async fn a_slow_service_cannot_take_all_places() {
    let (slow, _answers) = holding("slow").await;
    let quick = Backend::echo("quick").await;
    let overload = Overload {
        places: 4,
        service_percent: 50,
        queue: 0,
        ..Overload::default()
    };
    let mut services = directory(Service::Users, &[slow.upstream()]);
    services.extend(directory(Service::Apps, &[quick.upstream()]));
    let door = door(overload, services).await;
    let waiting = join_all((0..2).map(|_| door.post("/users", "x")));
    tokio::pin!(waiting);
    let full = eventually("it has its places", || async { slow.hits() == 2 });
    tokio::select! { _ = &mut waiting => panic!("none was answered"), () = full => {} }

    door.get("/users").await.expect_problem(503, "OVERLOADED");
    for _ in 0..10 {
        assert_eq!(door.get("/apps").await.status, 200);
    }
}

#[tokio::test]
async fn one_that_waits_too_long_is_refused() {
    let (slow, _answers) = holding("slow").await;
    let overload = Overload {
        places: 1,
        queue_within: Duration::from_millis(50),
        ..Overload::default()
    };
    let door = door(overload, directory(Service::Users, &[slow.upstream()])).await;
    let held = door.post("/users", "x");
    tokio::pin!(held);
    let full = eventually("it has the place", || async { slow.hits() == 1 });
    tokio::select! { _ = &mut held => panic!("it was not answered"), () = full => {} }

    door.get("/users").await.expect_problem(503, "OVERLOADED");

    assert_eq!(requests(&door, Service::Users)["shed"], 1);
    assert_eq!(slow.hits(), 1);
}

#[tokio::test]
async fn uploads_beyond_their_number_are_refused_and_nobody_else_is() {
    let (slow, answers) = holding("slow").await;
    let quick = Backend::echo("quick").await;
    let overload = Overload {
        uploads: 2,
        ..Overload::default()
    };
    let mut services = directory(Service::Apps, &[slow.upstream()]);
    services.extend(directory(Service::Users, &[quick.upstream()]));
    let door = door(overload, services).await;
    let under_way = join_all((0..2).map(|_| door.post("/apps/upload", "apk")));
    tokio::pin!(under_way);
    let full = eventually("both are under way", || async { slow.hits() == 2 });
    tokio::select! { _ = &mut under_way => panic!("none was answered"), () = full => {} }

    let refused = door.post("/apps/upload", "apk").await;
    refused.expect_problem(503, "OVERLOADED");
    assert_eq!(refused.headers["retry-after"], "5");
    assert_eq!(slow.hits(), 2);
    assert_eq!(door.get("/users").await.status, 200);

    answers.add_permits(3);
    for reply in under_way.await {
        assert_eq!(reply.status, 200);
    }
    assert_eq!(door.post("/apps/upload", "apk").await.status, 200);
}

#[tokio::test]
async fn an_upload_takes_no_place() {
    let (slow, answers) = holding("slow").await;
    let overload = Overload {
        places: 1,
        queue: 0,
        ..Overload::default()
    };
    let door = door(overload, directory(Service::Apps, &[slow.upstream()])).await;
    let uploading = door.post("/apps/upload", "apk");
    tokio::pin!(uploading);
    let under_way = eventually("it is under way", || async { slow.hits() == 1 });
    tokio::select! { _ = &mut uploading => panic!("it was not answered"), () = under_way => {} }

    answers.add_permits(2);
    assert_eq!(door.get("/apps").await.status, 200);
    assert_eq!(uploading.await.status, 200);
}

#[tokio::test]
async fn a_client_that_goes_away_gives_its_place_back() {
    let (slow, answers) = holding("slow").await;
    let overload = Overload {
        places: 1,
        queue: 0,
        ..Overload::default()
    };
    let door = door(overload, directory(Service::Users, &[slow.upstream()])).await;
    let asked = door.get("/users");
    let reached = eventually("it was asked", || async { slow.hits() == 1 });
    tokio::select! { _ = asked => panic!("it was not answered"), () = reached => {} }

    eventually("the place is free", || async {
        requests(&door, Service::Users)["inFlight"] == 0
    })
    .await;
    answers.add_permits(1);
    assert_eq!(door.get("/users").await.status, 200);
}

#[tokio::test]
async fn bodies_that_dribble_in_take_no_places_from_others() {
    let instance = Backend::echo("a").await;
    let overload = Overload {
        places: 2,
        service_percent: 100,
        queue: 0,
        ..Overload::default()
    };
    let door = door(overload, directory(Service::Users, &[instance.upstream()])).await;
    let slow = (0..8).map(|number| {
        let door = &door;
        let (pieces, body) = mpsc::channel::<std::io::Result<Bytes>>(1);
        let mut request = door.request("POST", "/users");
        if number % 2 == 0 {
            request = request.header("content-length", "2");
        }
        let request = request.body(Body::from_stream(ReceiverStream::new(body)));
        (pieces, door.send(request.unwrap()))
    });
    let (clients, replies): (Vec<_>, Vec<_>) = slow.unzip();
    let replies = join_all(replies);
    tokio::pin!(replies);
    let begun = async {
        for client in &clients {
            client.send(Ok(Bytes::from_static(b"x"))).await.unwrap();
        }
        // Those that are passed on as they come have reached it.
        eventually("half of them are under way", || async {
            instance.hits() >= 4
        })
        .await;
        for _ in 0..10 {
            assert_eq!(door.get("/users").await.status, 200);
        }
    };
    tokio::select! { _ = &mut replies => panic!("no body is whole"), () = begun => {} }

    let ending = async {
        for client in clients {
            client.send(Ok(Bytes::from_static(b"y"))).await.unwrap();
        }
    };
    let (replies, ()) = tokio::join!(replies, ending);
    // With bodies that are whole by now all at once, only as many are served as there are places.
    assert!(
        replies
            .iter()
            .all(|reply| [200, 503].contains(&reply.status.as_u16()))
    );
    let streamed = replies.iter().skip(1).step_by(2);
    assert!(streamed.clone().all(|reply| reply.status == 200));
}

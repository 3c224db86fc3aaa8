//! Replicas as real processes on one machine: restarted, killed and scaled under load, without a failed request.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails where something is not as it should be"
)]

mod cluster;
mod load;
mod replica;

use std::net::TcpListener;
use std::time::Duration;

use cluster::Cluster;
use load::Load;

/// Restarts in each test that restarts in a loop.
const RESTARTS: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn restarting_replicas_under_load_fails_no_request() {
    let mut cluster = Cluster::new(&["users", "billing"]);
    for _ in 0..3 {
        let replica = cluster.start().await;
        cluster.replicas.push(replica);
    }
    let load = Load::begin(&[cluster.address("users"), cluster.address("billing")]);

    for restart in 0..RESTARTS {
        load.serves().await;
        let mut old = cluster.replicas.remove(0);
        let new = match restart % 3 {
            // The successor comes when the old one is gone, at the same time, and before.
            0 => {
                old.terminate();
                assert_eq!(old.exit_code().await, 0);
                cluster.start().await
            }
            1 => {
                old.terminate();
                let new = cluster.start().await;
                assert_eq!(old.exit_code().await, 0);
                new
            }
            _ => {
                let new = cluster.start().await;
                old.terminate();
                assert_eq!(old.exit_code().await, 0);
                new
            }
        };
        cluster.replicas.push(new);
    }
    load.serves().await;

    let result = load.end().await;
    println!("{RESTARTS} restarts, {result:?}");
    assert_eq!(result.failures, Vec::<String>::new());
    assert!(
        result.reconnects > 0,
        "keep-alive clients never learned of a restart"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn restarting_the_only_replica_under_load_fails_no_request() {
    let mut cluster = Cluster::new(&["users"]);
    let replica = cluster.start().await;
    cluster.replicas.push(replica);
    let load = Load::begin(&[cluster.address("users")]);

    for _ in 0..4 {
        load.serves().await;
        let new = cluster.start().await;
        let mut old = cluster.replicas.remove(0);
        old.terminate();
        assert_eq!(old.exit_code().await, 0);
        cluster.replicas.push(new);
    }
    load.serves().await;

    assert_eq!(load.end().await.failures, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_leave_together_lose_nothing_to_each_other() {
    let mut cluster = Cluster::new(&["users"]);
    for _ in 0..4 {
        let replica = cluster.start().await;
        cluster.replicas.push(replica);
    }
    let load = Load::begin(&[cluster.address("users")]);
    load.serves().await;

    let mut leaving: Vec<_> = cluster.replicas.drain(..3).collect();
    leaving.iter().for_each(|replica| replica.terminate());
    for replica in &mut leaving {
        assert_eq!(replica.exit_code().await, 0);
    }
    load.serves().await;

    assert_eq!(load.end().await.failures, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_spread_over_the_replicas_also_after_restarts() {
    let mut cluster = Cluster::new(&["users"]);
    for _ in 0..3 {
        let replica = cluster.start().await;
        cluster.replicas.push(replica);
    }
    for _ in 0..3 {
        let mut old = cluster.replicas.remove(0);
        old.terminate();
        assert_eq!(old.exit_code().await, 0);
        let new = cluster.start().await;
        cluster.replicas.push(new);
    }

    let served = load::spread(cluster.address("users"), 400).await;

    println!("400 connections over 3 replicas: {served:?}");
    assert_eq!(served.len(), 3, "{served:?}");
    assert!(served.values().all(|count| *count > 40), "{served:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_left_to_those_who_have_it() {
    let cluster = Cluster::new(&["users", "billing"]);
    let mut both = cluster.start().await;
    let _users = cluster.start_roles(&["users"]).await;
    let load = Load::begin(&[cluster.address("users")]);
    load.serves().await;

    both.terminate();
    assert_eq!(both.exit_code().await, 0);
    load.serves().await;

    assert_eq!(load.end().await.failures, Vec::<String>::new());
    TcpListener::bind(cluster.address("billing")).unwrap();
    let _billing = cluster.start_roles(&["billing"]).await;
    assert_eq!(load::spread(cluster.address("billing"), 3).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_have_left_the_ports_are_free_and_the_folder_is_empty() {
    let mut cluster = Cluster::new(&["users", "billing"]);
    for _ in 0..2 {
        let replica = cluster.start().await;
        cluster.replicas.push(replica);
    }
    assert_eq!(cluster.doors(), 2);

    cluster
        .replicas
        .iter()
        .for_each(|replica| replica.terminate());
    for replica in &mut cluster.replicas {
        assert_eq!(replica.exit_code().await, 0);
    }

    assert_eq!(cluster.doors(), 0);
    for service in ["users", "billing"] {
        TcpListener::bind(cluster.address(service)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_the_successor_binds_anew_and_cleans_up() {
    let cluster = Cluster::new(&["users"]);
    let mut killed = cluster.start().await;
    let survivor = cluster.start().await;

    killed.kill().await;
    assert_eq!(cluster.doors(), 2);
    let successor = cluster.start().await;

    assert_eq!(cluster.doors(), 2);
    let served = load::spread(cluster.address("users"), 100).await;
    let mut expected = vec![survivor.pid(), successor.pid()];
    expected.sort_unstable();
    assert_eq!(served.into_keys().collect::<Vec<_>>(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_peer_stops_nobody() {
    let cluster = Cluster::new(&["users"]);
    let frozen = cluster.start().await;
    let mut leaving = cluster.start().await;

    frozen.freeze();
    let _new = cluster.start().await;
    leaving.terminate();
    assert_eq!(leaving.exit_code().await, 0);
    frozen.thaw();

    let load = Load::begin(&[cluster.address("users")]);
    load.serves().await;
    assert_eq!(load.end().await.failures, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_another_program_is_named() {
    let cluster = Cluster::new(&["users"]);
    let _stranger = TcpListener::bind(cluster.address("users")).unwrap();

    let (code, text) = cluster.fail_to_start().await;

    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains(&cluster.address("users").port().to_string()),
        "{text}"
    );
    assert!(text.contains("USERS_PORT"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_of_a_parent_are_used_and_outlive_the_replica() {
    let cluster = Cluster::new(&["users"]);
    let socket = TcpListener::bind(cluster.address("users")).unwrap();
    let mut first = cluster.start_with_socket(&socket).await;
    assert_eq!(
        load::spread(cluster.address("users"), 5)
            .await
            .into_keys()
            .collect::<Vec<_>>(),
        [first.pid()]
    );

    let load = Load::begin(&[cluster.address("users")]);
    load.serves().await;
    first.terminate();
    assert_eq!(first.exit_code().await, 0);
    let _second = cluster.start_with_socket(&socket).await;
    load.serves().await;

    assert_eq!(load.end().await.failures, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_requests_are_finished_and_a_second_signal_ends_at_once() {
    let cluster = Cluster::new(&["users"]);
    let mut replica = cluster.start().await;
    let address = cluster.address("users");

    let slow = load::get(address, "/slow?milliseconds=1500").await;
    replica.terminate();
    assert_eq!(slow.finish().await.unwrap(), replica.pid().to_string());
    assert_eq!(replica.exit_code().await, 0);

    let mut replica = cluster.start().await;
    let _endless = load::get(address, "/slow?milliseconds=600000").await;
    replica.terminate();
    let code = tokio::time::timeout(Duration::from_secs(10), replica.exit_code_insisting()).await;
    assert_eq!(code.unwrap(), 128 + 15);
}

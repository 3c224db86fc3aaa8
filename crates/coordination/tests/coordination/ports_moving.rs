//! Ports of a node whose slot of a Redis Cluster moves to another server.

use std::time::Duration;

use coordination::{PortError, PortPool, PortRanges, Recorded};

use crate::servers::{RedisServer, bare};
use crate::stores::until;

const TTL: Duration = Duration::from_secs(600);

#[tokio::test]
async fn while_its_slot_moves_no_port_is_leased_and_none_leaves_the_index() {
    let cluster = ["--cluster-enabled", "yes"];
    let (from, to) = (
        RedisServer::start(&cluster).await,
        RedisServer::start(&cluster).await,
    );
    from.run(&["cluster", "addslotsrange", "0", "16383"]);
    from.run(&["cluster", "meet", "127.0.0.1", &to.port.to_string()]);
    until("the servers know each other", async || {
        let info = from.ask(&["cluster", "info"]);
        info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:2")
    })
    .await;
    let ranges = PortRanges::default();
    let index = bare().port_index("n1", &ranges.layout());
    let pool = PortPool::new(from.pool().await, bare(), ranges, TTL);
    let nothing = Recorded::default();
    pool.rebuild("n1", &nothing, TTL).await.unwrap();
    let first = pool.lease("n1", "a", TTL).await.unwrap();

    let slot = from.ask(&["cluster", "keyslot", &index]);
    let other = to.ask(&["cluster", "myid"]);
    from.run(&["cluster", "setslot", &slot, "migrating", &other]);
    for _ in 0..3 {
        let refused = pool.lease("n1", "b", TTL).await.unwrap_err();
        assert!(matches!(refused, PortError::Store(_)), "{refused}");
    }
    from.run(&["cluster", "setslot", &slot, "stable"]);

    assert_eq!(pool.sweep("n1").await.unwrap().lost, 0);
    let second = pool.lease("n1", "b", TTL).await.unwrap();
    assert_eq!(second.adb, first.adb + 1);
    assert_eq!(second.webrtc, first.webrtc + 1);
}

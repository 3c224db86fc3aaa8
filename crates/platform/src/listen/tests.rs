//! Replicas that share a folder, all in one process.

use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::*;

const SERVICE: &str = "users";

struct Machine {
    folder: TempDir,
    addresses: Vec<(String, SocketAddr)>,
}

impl Machine {
    /// Finds an address below the range from which outgoing connections take theirs.
    fn new() -> Self {
        let address = loop {
            let address = SocketAddr::from(([127, 0, 0, 1], rand::random_range(10_000..20_000)));
            if TcpListener::bind(address).is_ok() {
                break address;
            }
        };
        Self {
            folder: tempfile::tempdir().unwrap(),
            addresses: vec![(SERVICE.to_owned(), address)],
        }
    }

    /// A replica whose connections answer with its number.
    async fn replica(&self, number: u8) -> Listeners {
        let listeners = Listeners::open(self.folder.path(), &self.addresses)
            .await
            .unwrap();
        listeners.serve(SERVICE, move |mut stream, _| {
            TaskTracker::new().spawn(async move { stream.write_all(&[number]).await });
        });
        listeners
    }

    /// Which replica answers a fresh connection.
    async fn ask(&self) -> std::io::Result<u8> {
        TcpStream::connect(self.addresses[0].1)
            .await?
            .read_u8()
            .await
    }
}

#[tokio::test]
async fn a_socket_goes_from_a_leaver_to_a_peer_to_a_successor() {
    let machine = Machine::new();
    let leaver = machine.replica(1).await;
    let peer = machine.replica(2).await;

    assert_eq!(
        leaver.hand_over().await,
        HandedOver {
            handed: 1,
            closed: 0
        }
    );
    assert_eq!(peer.adopted(), 1);
    assert_eq!(peer.addresses(SERVICE).len(), 2);
    for _ in 0..50 {
        assert_eq!(machine.ask().await.unwrap(), 2);
    }

    let successor = machine.replica(3).await;
    while peer.adopted() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(peer.addresses(SERVICE).len(), 1);
    assert_eq!(successor.addresses(SERVICE).len(), 1);
}

#[tokio::test]
async fn an_adopted_socket_is_passed_on_by_its_adopter() {
    let machine = Machine::new();
    let (first, second, third) = (
        machine.replica(1).await,
        machine.replica(2).await,
        machine.replica(3).await,
    );
    first.hand_over().await;
    let (full, other) = if second.adopted() == 1 {
        (second, third)
    } else {
        (third, second)
    };

    let report = full.hand_over().await;

    assert_eq!(
        report,
        HandedOver {
            handed: 2,
            closed: 0
        }
    );
    assert_eq!(other.addresses(SERVICE).len(), 3);
}

#[tokio::test]
async fn an_adopted_socket_that_nobody_claims_is_closed_without_a_reset() {
    let machine = Machine::new();
    let leaver = machine.replica(1).await;
    let peer = machine.replica(2).await;
    leaver.hand_over().await;
    let (sender, mut answers) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let clients = async {
        while !stop.is_cancelled() {
            let answer = machine.ask().await;
            sender.send(answer.is_ok()).unwrap();
            answer.unwrap();
        }
    };
    let close = async {
        answers.recv().await.unwrap();
        assert_eq!(peer.state.retire_unclaimed(Duration::from_secs(60)), 0);
        assert_eq!(peer.state.retire_unclaimed(Duration::ZERO), 1);
        // The loop of the peer's own socket is the one that is left.
        while peer.state.loops.len() > 1 {
            assert!(answers.recv().await.unwrap());
        }
        stop.cancel();
    };

    tokio::join!(clients, close);

    assert_eq!(peer.addresses(SERVICE).len(), 1);
}

#[tokio::test]
async fn replicas_that_start_at_once_are_no_strangers_to_each_other() {
    let machine = Machine::new();

    let replicas = futures::future::join_all((0..5).map(|number| machine.replica(number))).await;

    let left = futures::future::join_all(replicas.iter().map(Listeners::hand_over)).await;
    assert!(left.iter().map(|report| report.closed).sum::<usize>() >= 1);
    TcpListener::bind(machine.addresses[0].1).unwrap();
}

#[tokio::test]
async fn another_cluster_on_the_same_port_is_refused() {
    let machine = Machine::new();
    let _ours = machine.replica(1).await;
    let elsewhere = tempfile::tempdir().unwrap();

    let error = Listeners::open(elsewhere.path(), &machine.addresses)
        .await
        .err()
        .unwrap();

    assert!(matches!(error, Error::InUse { .. }), "{error}");
}

#[tokio::test]
async fn a_deep_folder_and_an_unusable_one_do_no_harm() {
    let machine = Machine::new();
    let deep = machine
        .folder
        .path()
        .join("d".repeat(100))
        .join("e".repeat(100));
    let first = Listeners::open(&deep, &machine.addresses).await.unwrap();
    let second = Listeners::open(&deep, &machine.addresses).await.unwrap();
    assert_eq!(first.hand_over().await.handed, 1);
    assert_eq!(second.hand_over().await.closed, 2);

    let file = tempfile::NamedTempFile::new().unwrap();
    let alone = Listeners::open(file.path(), &machine.addresses)
        .await
        .unwrap();
    assert_eq!(alone.hand_over().await.closed, 1);
}

#[tokio::test]
async fn a_private_port_is_served_and_closed_with_the_rest() {
    let machine = Machine::new();
    let listeners = machine.replica(7).await;

    let address = listeners
        .open_private(SERVICE, SocketAddr::from(([127, 0, 0, 1], 0)))
        .unwrap();

    assert_ne!(address.port(), 0);
    assert_eq!(
        TcpStream::connect(address)
            .await
            .unwrap()
            .read_u8()
            .await
            .unwrap(),
        7
    );
    listeners.hand_over().await;
    assert!(TcpStream::connect(address).await.is_err());
}

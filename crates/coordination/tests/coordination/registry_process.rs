//! The registry between processes: news are pushed, and the poll sees what is not.

use std::time::Duration;

use coordination::{Pace, Registry};
use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand};
use nix::sys::signal::Signal;

use crate::children::{Process, dismissed, told};
use crate::registry::announcement;
use crate::stores::{Stores, redis_url, stores, stores_as, stores_under, until};

const TTL: Duration = Duration::from_millis(1500);
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// A registry that reads by itself so often.
fn registry(stores: &Stores, poll: Duration) -> Registry {
    let pace = Pace {
        ttl: TTL,
        poll,
        poll_when_pushed: poll,
    };
    Registry::with_pace(stores.redis.clone(), stores.keys.clone(), pace)
}

fn member(stores: &Stores, name: &str) -> Process {
    Process::start("registry_process::member_process", stores, None, name)
}

#[tokio::test]
#[ignore = "a part of the other tests, in a process of its own"]
async fn member_process() {
    let stores = stores_under(&told("CHILD_PREFIX")).await;
    let registry = registry(&stores, NEVER);
    let member = registry.join(announcement("users", 7)).await.unwrap();
    dismissed().await;
    member.set_draining(true);
    dismissed().await;
    member.leave().await.unwrap();
}

#[tokio::test]
async fn joining_draining_leaving_and_dying_are_pushed_to_those_who_never_poll() {
    let stores = stores().await;
    let here = registry(&stores, NEVER);
    let watch = here.watch();
    let count = || watch.borrow().of("users").len();
    // Hearing takes a connection; what happens before that is read when it stands.
    let mut first = member(&stores, "first");
    until("the first is seen", async || count() == 1).await;

    let second = member(&stores, "second");
    until("a join is seen", async || count() == 2).await;
    first.tell("drain");
    until("a draining one is seen", async || {
        watch
            .borrow()
            .of("users")
            .iter()
            .any(|entry| entry.load.draining)
    })
    .await;
    first.dismiss();
    until("a leave is seen", async || count() == 1).await;
    let left = watch.borrow().of("users")[0].clone();
    assert_eq!(left.announcement.version, "0.1.0");
    assert!(!left.announcement.address.is_empty());

    // Whoever is killed says nothing: the next heartbeat of any other finds its lease gone, and tells.
    let survivor = member(&stores, "survivor");
    until("another joins", async || count() == 2).await;
    second.signal(Signal::SIGKILL);
    until("a dead one is seen no more", async || count() == 1).await;
    drop(survivor);
}

#[tokio::test]
async fn who_hears_no_news_sees_the_same_by_its_poll() {
    let stores = stores().await;
    // A user of Redis that may use every command and no channel.
    let user = format!("deaf-{}", stores.prefix);
    acl(
        &stores,
        &[
            "SETUSER",
            &user,
            "on",
            ">deaf",
            "~*",
            "+@all",
            "resetchannels",
        ],
    )
    .await;
    let given = redis_url();
    let (_, rest) = given.split_once("://").unwrap();
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    let url = format!("redis://{user}:deaf@{place}");
    let deaf = stores_as(&url, &stores.prefix).await;
    let here = registry(&deaf, Duration::from_millis(50));
    let watch = here.watch();
    let count = || watch.borrow().of("users").len();

    let mut first = member(&stores, "first");
    let second = member(&stores, "second");
    until("two are seen", async || count() == 2).await;
    first.tell("drain");
    first.dismiss();
    until("one has left", async || count() == 1).await;
    second.signal(Signal::SIGKILL);
    until("the other died", async || count() == 0).await;
    // Who may not publish can be a member all the same.
    let member = here.join(announcement("users", 8)).await.unwrap();
    until("it sees itself", async || count() == 1).await;
    member.leave().await.unwrap();
    until("and no more", async || count() == 0).await;

    acl(&stores, &["DELUSER", &user]).await;
}

async fn acl(stores: &Stores, words: &[&str]) {
    let command = CustomCommand::new_static("ACL", ClusterHash::Random, false);
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let _: String = stores
        .redis
        .custom::<fred::types::Value, _>(command, words)
        .await
        .map(|answer| format!("{answer:?}"))
        .unwrap();
}

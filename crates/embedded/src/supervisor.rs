//! The supervisor's process: it runs the stores for as long as it has members.

use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::stat::{Mode, umask};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::binaries::Binaries;
use crate::news::{Message, News};
use crate::place::Place;
use crate::postgres::Postgres;
use crate::record::Record;
use crate::redis::Redis;
use crate::store::{Shared, keep};
use crate::{lock, socket};

/// How long the stores outlive their last member, so that a restart of the only replica finds them running.
const LINGER: Duration = Duration::from_secs(1);
/// How long the supervisor waits for its first member.
const FIRST_MEMBER: Duration = Duration::from_secs(10);
/// How long an earlier supervisor may take to end its stores.
const PREDECESSOR: Duration = Duration::from_secs(25);

/// The whole life of the supervisor; call it from the main thread, outside any runtime. Returns when the last member
/// has left and the stores have ended.
pub fn supervise(dir: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(run(dir));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn run(dir: &Path) -> anyhow::Result<()> {
    // The member that started us made the folder; one that is gone meanwhile must not come back.
    let dir = dir
        .canonicalize()
        .with_context(|| format!("could not open {}", dir.display()))?;
    let _only = lock::exclusive(&dir, lock::SUPERVISOR, PREDECESSOR)
        .await
        .context("another supervisor runs")?;
    umask(Mode::from_bits_truncate(0o077));
    let listener = socket::listen(&dir).context("could not listen for members")?;
    let news = News::new();
    let stop = CancellationToken::new();

    let stores = run_stores(&dir, &news, &stop);
    let members = async {
        attend_members(&listener, &news, &stop).await;
        // From here on a new member fails to connect and starts the next supervisor, which waits for our lock.
        drop(listener);
        let removed = socket::remove(&dir).context("could not remove the socket");
        stop.cancel();
        removed
    };
    let ((), left) = tokio::join!(stores, members);
    info!("the private stores have ended");
    left
}

async fn run_stores(dir: &Path, news: &News, stop: &CancellationToken) {
    let (shared, password_is_new) = match prepare(dir, news) {
        Ok(prepared) => prepared,
        Err(error) => {
            news.say(Message::Failed(format!("{error:#}")));
            return stop.cancel();
        }
    };
    let shared = Rc::new(shared);
    let (redis_answered, redis_answers) = oneshot::channel();
    let (postgres_answered, postgres_answers) = oneshot::channel();
    let redis = keep(Redis::new(shared.clone()), &shared, redis_answered, stop);
    let postgres = keep(
        Postgres::new(shared.clone(), password_is_new),
        &shared,
        postgres_answered,
        stop,
    );
    let tell = async {
        if redis_answers.await.is_ok() && postgres_answers.await.is_ok() {
            news.say(Message::Ready(shared.record.borrow().addresses()));
        }
    };
    tokio::join!(redis, postgres, tell);
}

fn prepare(dir: &Path, news: &News) -> anyhow::Result<(Shared, bool)> {
    let binaries = Binaries::find()?;
    let recorded = Record::read(dir).context("could not read stores.json")?;
    let is_new = recorded.is_none();
    let mut record = recorded
        .map_or_else(Record::new, Ok)
        .context("could not choose ports")?;
    let place = Place::choose(dir, record.data.as_deref())?;
    if place.data != dir {
        let (dir, data) = (dir.display(), place.data.display());
        news.step(format!("the user that PostgreSQL runs as cannot enter {dir}: the data of the stores is in {data}"));
        record.data = Some(place.data.clone());
    }
    record.save(dir).context("could not write stores.json")?;
    Ok((
        Shared {
            place,
            binaries,
            record: record.into(),
            news: news.clone(),
        },
        is_new,
    ))
}

/// Serves members until the last one has been gone for a while, or the stores have failed.
async fn attend_members(listener: &UnixListener, news: &News, stop: &CancellationToken) {
    let mut members = JoinSet::new();
    let mut end_at = Some(Instant::now() + FIRST_MEMBER);
    let mut asked = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ]
    .map(|kind| signal(kind).expect("these signals can be watched"));
    let [terminate, interrupt, hangup] = &mut asked;
    loop {
        tokio::select! {
            biased;
            Ok((stream, _)) = listener.accept() => {
                members.spawn(attend(stream, news.listen()));
                end_at = None;
            }
            Some(_) = members.join_next() => {
                if members.is_empty() {
                    end_at = Some(Instant::now() + LINGER);
                }
            }
            // Whoever stops everything at once stops the replicas too, and they still need the stores while they leave.
            _ = terminate.recv() => info!("asked to end: will do when the last replica has left"),
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
            () = stop.cancelled() => break,
            () = sleep_until(end_at.unwrap_or_else(Instant::now)), if end_at.is_some() => {
                info!("the last replica has left");
                return;
            }
        }
    }
    // The stores failed: the members are told by now or at once, and have nothing to wait for.
    tokio::time::sleep(Duration::from_millis(100)).await;
    members.shutdown().await;
}

/// Tells one member the news until it leaves; a member that dies leaves too. One that comes when the stores answer
/// hears where, and not how they were started.
async fn attend(
    mut stream: UnixStream,
    mut news: watch::Receiver<Vec<Message>>,
) -> anyhow::Result<()> {
    let (mut from_member, mut to_member) = stream.split();
    let mut told = news
        .borrow()
        .iter()
        .rposition(|said| matches!(said, Message::Ready(_)))
        .unwrap_or(0);
    loop {
        let fresh: Vec<_> = news.borrow_and_update()[told..].to_vec();
        told += fresh.len();
        for message in fresh {
            let mut line = serde_json::to_vec(&message)?;
            line.push(b'\n');
            to_member.write_all(&line).await?;
        }
        let mut byte = [0];
        tokio::select! {
            heard = from_member.read(&mut byte) => if heard? == 0 { return Ok(()) },
            changed = news.changed() => changed?,
        }
    }
}

/// Starts the log anew when it has grown large; the old one stays beside it.
pub fn turn_log(log: &Path) {
    const LARGE: u64 = 8 << 20;
    if fs::metadata(log).is_ok_and(|metadata| metadata.len() > LARGE) {
        let _ = fs::rename(log, log.with_extension("log.1"));
    }
}

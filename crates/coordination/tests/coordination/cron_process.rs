//! A holder that is stopped in the middle of its run, and goes on when another process has long run the slot.

use std::time::Duration;

use coordination::redlock::SHORTEST_TTL;
use coordination::{Cron, Invariants, Job, Redlock, Run};
use nix::sys::signal::Signal;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::children::{Process, dismissed, told};
use crate::cron::{NEVER, cron};
use crate::stores::{redis_url, stores, stores_under, until};

/// Writes one row for the run, if it may; the row says who wrote it. The stalled one announces itself, and writes only
/// when another has.
async fn write_once(db: PgPool, name: String, run: Run) -> anyhow::Result<()> {
    if name == "stalled" {
        sqlx::query("insert into effects (name) values ('begun')")
            .execute(&db)
            .await?;
        // Stopped here, it is not told of anything; what it believes when it goes on is what it believed before.
        loop {
            let done: i64 = sqlx::query_scalar("select count(*) from effects where name = 'heir'")
                .fetch_one(&db)
                .await?;
            if done > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let mut tx = match run.guard().begin(&db).await {
        Ok(tx) => tx,
        Err(error) => {
            if error.is_fenced() {
                sqlx::query("insert into effects (name) values ('refused')")
                    .execute(&db)
                    .await?;
            }
            return Err(error.into());
        }
    };
    sqlx::query("insert into effects (name, slot) values ($1, $2)")
        .bind(&name)
        .bind(run.slot)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(())
}

#[tokio::test]
#[ignore = "a part of the other tests, in a process of its own"]
async fn replica_process() {
    let stores = stores_under(&told("CHILD_PREFIX")).await;
    let db = PgPool::connect(&told("CHILD_DATABASE_URL")).await.unwrap();
    let name = told("CHILD_NAME");
    let redlock = Redlock::new(vec![redis_url()], SHORTEST_TTL).unwrap();
    let cron = Cron::new(db.clone(), redlock, name.clone()).with_keys(stores.keys.clone());
    let effects = db.clone();
    let job = Job::new("effect", NEVER, move |run| {
        let written = write_once(effects.clone(), name.clone(), run);
        let (done, ended) = tokio::sync::oneshot::channel();
        // Like a call that is under way it goes on where the run is cancelled and dropped.
        let mut detached = tokio::task::JoinSet::new();
        detached.spawn(async move { done.send(written.await).is_ok() });
        detached.detach_all();
        async move { ended.await? }
    });
    let stop = CancellationToken::new();
    let running = tokio::task::JoinSet::from_iter([cron.run(vec![job], stop.clone())]);
    // Whoever is stopped must still tell what it counted.
    let invariants = Invariants::new(db, told("CHILD_NAME"));
    let mut told = std::pin::pin!(dismissed());
    loop {
        tokio::select! {
            () = &mut told => break,
            () = tokio::time::sleep(Duration::from_millis(100)) => invariants.publish().await.unwrap(),
        }
    }
    stop.cancel();
    for ended in running.join_all().await {
        ended.unwrap();
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_holder_that_was_stopped_past_its_lock_changes_nothing_when_it_goes_on(db: PgPool) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    sqlx::query("create table effects (name text not null, slot timestamptz)")
        .execute(&db)
        .await
        .unwrap();
    let count = async |name: &str| -> i64 {
        sqlx::query_scalar("select count(*) from effects where name = $1")
            .bind(name)
            .fetch_one(&db)
            .await
            .unwrap()
    };
    let process = |name| Process::start("cron_process::replica_process", &stores, Some(&db), name);

    let mut stalled = process("stalled");
    until("the first process has begun the run", async || {
        if admin.history("effect", 1).await.unwrap().is_empty() {
            let _ = admin.trigger("effect").await;
        }
        count("begun").await == 1
    })
    .await;
    stalled.signal(Signal::SIGSTOP);

    // The lock lives for ten seconds, and so long must its holder be silent.
    let mut heir = process("heir");
    until("the second process has run the slot", async || {
        count("heir").await == 1
    })
    .await;
    stalled.signal(Signal::SIGCONT);
    until("the first one was refused, and told of it", async || {
        let told: Option<i64> =
            sqlx::query_scalar("select total from coordination.fenced_writes where kind = 'cron'")
                .fetch_optional(&db)
                .await
                .unwrap();
        count("refused").await == 1 && told >= Some(1)
    })
    .await;
    until("both have given their account", async || {
        let open: i64 = sqlx::query_scalar(
            "select count(*) from coordination.cron_attempts where outcome is null",
        )
        .fetch_one(&db)
        .await
        .unwrap();
        open == 0
    })
    .await;
    stalled.dismiss();
    heir.dismiss();

    let effects: i64 = sqlx::query_scalar("select count(*) from effects where slot is not null")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(effects, 1, "one effect for one slot");
    let run = admin.history("effect", 10).await.unwrap().remove(0);
    assert_eq!(
        (run.state.as_str(), run.attempt, run.instance.as_deref()),
        ("succeeded", 2, Some("heir"))
    );
    let outcomes: Vec<(String, bool, bool)> = sqlx::query_as(
        "select instance, outcome = 'succeeded', accepted from coordination.cron_attempts order by token",
    )
    .fetch_all(&db)
    .await
    .unwrap();
    let expected = [
        ("stalled".to_owned(), false, false),
        ("heir".to_owned(), true, true),
    ];
    assert_eq!(outcomes, expected, "whether it succeeded, and counted");
    let invariants = Invariants::new(db.clone(), "admin".into());
    for check in invariants.checks() {
        invariants.look(&check).await.unwrap();
    }
    let report = invariants.report(10).await.unwrap();
    assert!(
        report
            .invariants
            .iter()
            .all(|each| each.total == 0 && each.findings.is_empty())
    );
}

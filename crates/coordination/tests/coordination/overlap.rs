//! Cron policies: a slot that falls due while the job runs, on this replica or another; pauses; triggers.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use coordination::cron::PastRun;
use coordination::{Cron, Job, Jobs, Overlap, Run};
use sqlx::PgPool;
use tokio::sync::Semaphore;

use crate::cron::{NEVER, Seen, cron, hourly, noting, while_running};
use crate::stores::{Stores, stores};

/// A job whose runs go on until they are let go or cancelled.
#[derive(Clone, Default)]
struct Gate {
    begun: Seen,
    together: Arc<AtomicUsize>,
    most_together: Arc<AtomicUsize>,
    open: Arc<OpenGate>,
}

struct OpenGate(Semaphore);

impl Default for OpenGate {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Gate {
    fn job(&self, overlap: Overlap) -> Job {
        let gate = self.clone();
        Job::new("gated", "* * * * * *", move |run: Run| {
            let gate = gate.clone();
            async move {
                gate.begun.lock().unwrap().push((run.slot, run.fence.0));
                let together = gate.together.fetch_add(1, Ordering::SeqCst) + 1;
                gate.most_together.fetch_max(together, Ordering::SeqCst);
                let cancelled = tokio::select! {
                    permit = gate.open.0.acquire() => { permit.unwrap().forget(); false }
                    () = run.cancelled.cancelled() => true,
                };
                gate.together.fetch_sub(1, Ordering::SeqCst);
                anyhow::ensure!(!cancelled, "cancelled");
                Ok(())
            }
        })
        .overlap(overlap)
    }

    fn begun(&self) -> usize {
        self.begun.lock().unwrap().len()
    }
}

/// Three replicas that run the job.
fn three(stores: &Stores, db: &PgPool, gate: &Gate, overlap: Overlap) -> Vec<(Cron, Vec<Job>)> {
    ["a", "b", "c"]
        .map(|name| (cron(stores, db, name), vec![gate.job(overlap)]))
        .to_vec()
}

async fn count(jobs: &Jobs, state: &str) -> usize {
    let runs: Vec<PastRun> = jobs.history("gated", 1000).await.unwrap();
    runs.iter().filter(|run| run.state == state).count()
}

#[sqlx::test(migrations = "../../migrations")]
async fn with_skip_the_slots_of_a_long_run_are_written_off_one_by_one(db: PgPool) {
    let stores = stores().await;
    let (gate, admin) = (Gate::default(), cron(&stores, &db, "admin").jobs());

    let let_go = Cell::new(false);
    while_running(
        three(&stores, &db, &gate, Overlap::Skip),
        "three slots are skipped, and the next is run after the end",
        async || {
            if !let_go.get() && count(&admin, "skipped").await >= 3 {
                gate.open.0.add_permits(1);
                let_go.set(true);
            }
            gate.begun() >= 2
        },
    )
    .await;

    assert_eq!(gate.most_together.load(Ordering::SeqCst), 1);
    let mut runs = admin.history("gated", 1000).await.unwrap();
    runs.reverse();
    let skipped: Vec<_> = runs.iter().filter(|run| run.state == "skipped").collect();
    let (first, second) = (runs[0].clone(), gate.begun.lock().unwrap()[1].0);
    assert_eq!(first.state, "succeeded");
    assert!(
        skipped
            .iter()
            .all(|run| run.slot > first.slot && run.token.is_none()),
        "{runs:?}"
    );
    // Those that fell due in the first run were skipped, so the second is none of them.
    assert!(second > first.finished_at.unwrap(), "{runs:?}");
}

#[sqlx::test(migrations = "../../migrations")]
async fn with_queue_one_only_the_latest_of_the_slots_that_wait_is_run(db: PgPool) {
    let stores = stores().await;
    let (gate, admin) = (Gate::default(), cron(&stores, &db, "admin").jobs());

    while_running(
        three(&stores, &db, &gate, Overlap::QueueOne),
        "another slot runs after the end",
        async || {
            let runs = admin.history("gated", 1).await.unwrap();
            let now = sqlx::query_scalar("select clock_timestamp()").fetch_one(&db);
            let now: chrono::DateTime<chrono::Utc> = now.await.unwrap();
            let waited = |run: &PastRun| now - run.slot > chrono::TimeDelta::seconds(3);
            if runs.first().is_some_and(waited) && gate.begun() == 1 {
                gate.open.0.add_permits(1);
            }
            gate.begun() >= 2
        },
    )
    .await;

    assert_eq!(gate.most_together.load(Ordering::SeqCst), 1);
    let begun = gate.begun.lock().unwrap().clone();
    assert!(
        begun[1].0 - begun[0].0 >= chrono::TimeDelta::seconds(3),
        "slots between were run: {begun:?}"
    );
    assert_eq!(count(&admin, "skipped").await, 0);
}

#[sqlx::test(migrations = "../../migrations")]
async fn with_cancel_other_each_slot_ends_the_run_before_it(db: PgPool) {
    let stores = stores().await;
    let (gate, admin) = (Gate::default(), cron(&stores, &db, "admin").jobs());

    while_running(
        three(&stores, &db, &gate, Overlap::CancelOther),
        "two runs were cancelled",
        async || count(&admin, "cancelled").await >= 2,
    )
    .await;

    assert_eq!(gate.most_together.load(Ordering::SeqCst), 1);
    let mut runs = admin.history("gated", 1000).await.unwrap();
    runs.reverse();
    for pair in runs.windows(2) {
        let ended = pair[0].finished_at.unwrap();
        assert!(
            pair[1].started_at.is_none_or(|begun| begun >= ended),
            "{runs:?}"
        );
        assert_eq!(pair[0].error.as_deref(), Some("a later slot came first"));
    }
    assert_eq!(
        admin.overview(1).await.unwrap()[0].told.failures,
        0,
        "who is cancelled has not failed"
    );
}

#[sqlx::test(migrations = "../../migrations")]
async fn with_allow_slots_run_beside_each_other_with_a_token_each(db: PgPool) {
    let stores = stores().await;
    let (gate, admin) = (Gate::default(), cron(&stores, &db, "admin").jobs());

    while_running(
        three(&stores, &db, &gate, Overlap::Allow),
        "three run at a time",
        async || gate.most_together.load(Ordering::SeqCst) >= 3,
    )
    .await;

    let begun = gate.begun.lock().unwrap().clone();
    let mut slots: Vec<_> = begun.iter().map(|(slot, _)| *slot).collect();
    slots.sort();
    slots.dedup();
    assert_eq!(slots.len(), begun.len(), "no slot twice: {begun:?}");
    assert!(begun.iter().all(|(_, token)| *token == 1), "{begun:?}");

    // Their tokens go with their history.
    let old = "update coordination.cron_runs set scheduled_at = now() - interval '31 days'";
    sqlx::query(old).execute(&db).await.unwrap();
    sqlx::query("update coordination.cron_runs set state = 'succeeded'")
        .execute(&db)
        .await
        .unwrap();
    let kept = admin
        .purge_history(chrono::TimeDelta::days(30), 1000)
        .await
        .unwrap();
    let left: i64 = sqlx::query_scalar("select count(*) from coordination.fences")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!((kept, left), (begun.len() as u64 - 1, 1));
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_job_that_fails_again_and_again_pauses_itself_until_it_is_resumed(db: PgPool) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    let failing = || {
        Job::new("fails", "* * * * * *", |run: Run| async move {
            anyhow::ensure!(run.slot.timestamp() < 0, "no luck");
            Ok(())
        })
        .pause_after(3)
    };
    let replicas = || {
        ["a", "b"]
            .map(|name| (cron(&stores, &db, name), vec![failing()]))
            .to_vec()
    };
    let state = async || admin.overview(2).await.unwrap().into_iter().next();

    while_running(replicas(), "it is paused", async || {
        state()
            .await
            .is_some_and(|job| job.told.paused_at.is_some())
    })
    .await;

    let paused = state().await.unwrap();
    assert_eq!(paused.told.failures, 3);
    let reason = paused.told.pause_reason.unwrap();
    assert_eq!(reason, "3 failed runs in a row, the last: no luck");
    assert!(paused.next_runs.is_empty());

    // A pause stops the schedule and not a hand.
    while_running(replicas(), "a run by hand has failed", async || {
        let history = admin.history("fails", 100).await.unwrap();
        if !history.iter().any(|run| run.manual) {
            admin.trigger("fails").await.unwrap();
        }
        history
            .iter()
            .any(|run| run.manual && run.state == "failed")
    })
    .await;
    let by_schedule = |runs: Vec<PastRun>| runs.iter().filter(|run| !run.manual).count();
    assert_eq!(by_schedule(admin.history("fails", 100).await.unwrap()), 3);

    assert!(admin.resume("fails").await.unwrap());
    let resumed = state().await.unwrap();
    assert_eq!((resumed.told.failures, resumed.next_runs.len()), (0, 2));
    while_running(replicas(), "it is paused again", async || {
        state()
            .await
            .is_some_and(|job| job.told.paused_at.is_some())
    })
    .await;
    assert_eq!(by_schedule(admin.history("fails", 100).await.unwrap()), 6);
}

#[sqlx::test(migrations = "../../migrations")]
async fn the_slots_of_a_pause_are_nobodys_debt(db: PgPool) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    let (schedule, _) = hourly(&db).await;
    let known = "insert into coordination.cron_jobs (job, schedule, catch_up, owes_since)
        values ('note', $1, 'last', now() - interval '1 day')";
    let known = sqlx::query(known).bind(&schedule).execute(&db).await;
    known.unwrap();

    assert!(admin.pause("note", "maintenance").await.unwrap());
    assert!(!admin.pause("note", "again").await.unwrap());
    let told = admin.overview(1).await.unwrap().remove(0).told;
    assert_eq!(told.pause_reason.as_deref(), Some("maintenance"));
    assert!(admin.resume("note").await.unwrap());
    assert!(!admin.resume("note").await.unwrap());

    let seen = Seen::default();
    let jobs = vec![
        noting(&seen, &schedule),
        crate::cron::waiting("other", NEVER),
    ];
    while_running(
        vec![(cron(&stores, &db, "a"), jobs)],
        "what was asked for afterwards has run",
        async || {
            if admin.history("note", 1).await.unwrap().is_empty() {
                admin.trigger("note").await.unwrap();
            }
            !seen.lock().unwrap().is_empty()
        },
    )
    .await;

    let runs = admin.history("note", 10).await.unwrap();
    assert!(runs.iter().all(|run| run.manual), "{runs:?}");
    assert!(admin.pause("nothing", "").await.is_err());
    assert!(admin.resume("nothing").await.is_err());
    assert!(admin.history_before("nothing", None, 1).await.is_err());
}

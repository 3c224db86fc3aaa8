//! Cron: every slot once whatever ticks, and a run whose holder vanished made good.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Timelike, Utc};
use coordination::cron::Scheduler;
use coordination::redlock::SHORTEST_TTL;
use coordination::{CatchUp, Cron, CronError, Job, Redlock, Run};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::stores::{Stores, redis_url, stores, until};

pub const NEVER: &str = "0 0 29 2 *";

pub type Seen = Arc<Mutex<Vec<(DateTime<Utc>, i64)>>>;

pub fn cron(stores: &Stores, db: &PgPool, name: &str) -> Cron {
    let redlock = Redlock::new(vec![redis_url()], SHORTEST_TTL).unwrap();
    Cron::new(db.clone(), redlock, name.to_owned()).with_keys(stores.keys.clone())
}

pub fn noting(seen: &Seen, schedule: &str) -> Job {
    let seen = seen.clone();
    Job::new("note", schedule, move |run: Run| {
        let seen = seen.clone();
        async move {
            seen.lock().unwrap().push((run.slot, run.fence.0));
            Ok(())
        }
    })
}

pub fn waiting(name: &'static str, schedule: &str) -> Job {
    Job::new(name, schedule, |run: Run| async move {
        run.cancelled.cancelled().await;
        anyhow::bail!("cancelled")
    })
}

/// A schedule with a slot every hour, the latest half an hour ago, so that none falls due in the test; and that slot.
pub async fn hourly(db: &PgPool) -> (String, DateTime<Utc>) {
    let latest = sqlx::query_scalar("select date_trunc('minute', now()) - interval '30 minutes'");
    let latest: DateTime<Utc> = latest.fetch_one(db).await.unwrap();
    (format!("{} * * * *", latest.minute()), latest)
}

/// Runs instances until a condition holds, then stops them.
pub async fn while_running<R: Future<Output = bool>>(
    instances: Vec<(Cron, Vec<Job>)>,
    what: &str,
    condition: impl FnMut() -> R,
) {
    let stop = CancellationToken::new();
    let mut running = JoinSet::new();
    for (cron, jobs) in instances {
        running.spawn(cron.run(jobs, stop.clone()));
    }
    until(what, condition).await;
    stop.cancel();
    for ended in running.join_all().await {
        ended.unwrap();
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn three_instances_run_each_slot_once_and_in_order(db: PgPool) {
    let stores = stores().await;
    let seen = Seen::default();
    let instances = ["a", "b", "c"]
        .map(|name| (cron(&stores, &db, name), vec![noting(&seen, "* * * * * *")]))
        .to_vec();

    while_running(instances, "five slots have run", async || {
        seen.lock().unwrap().len() >= 5
    })
    .await;

    let seen = seen.lock().unwrap().clone();
    // Each later than the one before; on a slow machine a second may be passed over, as the policy says.
    for pair in seen.windows(2) {
        assert!(pair[1].0 > pair[0].0 && pair[1].1 > pair[0].1, "{seen:?}");
    }
    let history = cron(&stores, &db, "d")
        .jobs()
        .history("note", 100)
        .await
        .unwrap();
    assert!(
        history
            .iter()
            .all(|run| run.state == "succeeded" && run.attempt == 1),
        "{history:?}"
    );
    let mut slots: Vec<_> = history.iter().map(|run| run.slot).collect();
    slots.reverse();
    let run: Vec<_> = seen.iter().map(|(slot, _)| *slot).collect();
    assert_eq!(slots, run);
}

#[sqlx::test(migrations = "../../migrations")]
async fn without_any_lasting_lock_the_database_still_keeps_slots_single(db: PgPool) {
    let stores = stores().await;
    let seen = Seen::default();
    let instances = ["a", "b", "c"]
        .map(|name| (cron(&stores, &db, name), vec![noting(&seen, "* * * * * *")]))
        .to_vec();

    while_running(instances, "four slots have run", async || {
        stores.delete(&stores.keys.cron("note")).await;
        seen.lock().unwrap().len() >= 4
    })
    .await;

    let slots: Vec<_> = seen.lock().unwrap().iter().map(|(slot, _)| *slot).collect();
    assert!(slots.is_sorted_by(|a, b| a < b), "{slots:?}");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_run_whose_holder_vanished_is_taken_over_with_a_higher_token(db: PgPool) {
    let stores = stores().await;
    let doomed = cron(&stores, &db, "doomed").jobs();
    // A process of its own, as it were: shut down, none of its tasks gets to say goodbye.
    let process = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let other = sqlx::PgPool::connect_lazy_with((*db.connect_options()).clone());
    let theirs = Cron::new(
        other,
        Redlock::new(vec![redis_url()], SHORTEST_TTL).unwrap(),
        "doomed".into(),
    )
    .with_keys(stores.keys.clone());
    let task = process
        .handle()
        .spawn(theirs.run(vec![waiting("note", NEVER)], CancellationToken::new()));
    until("the job is known", async || {
        doomed.trigger("note").await.is_ok()
    })
    .await;
    until("it runs", async || {
        doomed.history("note", 1).await.unwrap()[0].state == "running"
    })
    .await;
    process.shutdown_background();
    drop(task);
    // Ten seconds pass: its lock expires, and it has been silent for as long.
    stores.delete(&stores.keys.cron("note")).await;
    let silence = "update coordination.cron_runs set alive_at = alive_at - interval '11 seconds'";
    sqlx::query(silence).execute(&db).await.unwrap();

    let seen = Seen::default();
    let heir = vec![(cron(&stores, &db, "heir"), vec![noting(&seen, NEVER)])];
    while_running(heir, "the run is made good", async || {
        doomed.history("note", 1).await.unwrap()[0].state == "succeeded"
    })
    .await;

    let run = doomed.history("note", 10).await.unwrap().remove(0);
    assert_eq!(
        (run.attempt, run.instance.as_deref(), run.token),
        (2, Some("heir"), Some(2))
    );
    assert_eq!(*seen.lock().unwrap(), [(run.slot, 2)]);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_stop_hands_the_running_slot_to_another_instance(db: PgPool) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    let leaving = vec![(cron(&stores, &db, "leaving"), vec![waiting("note", NEVER)])];
    while_running(leaving, "it runs", async || {
        let _ = match admin.history("note", 1).await.unwrap().first() {
            None => admin.trigger("note").await.is_ok(),
            Some(run) => return run.state == "running",
        };
        false
    })
    .await;
    assert_eq!(
        admin.history("note", 1).await.unwrap()[0].state,
        "abandoned"
    );

    let seen = Seen::default();
    let heir = vec![(cron(&stores, &db, "heir"), vec![noting(&seen, NEVER)])];
    while_running(heir, "the run is made good", async || {
        admin.history("note", 1).await.unwrap()[0].state == "succeeded"
    })
    .await;

    assert_eq!(seen.lock().unwrap().len(), 1);
    assert_eq!(
        admin.history("note", 1).await.unwrap()[0].attempt,
        1,
        "a run that is handed on uses up no attempt"
    );
}

#[sqlx::test(migrations = "../../migrations")]
async fn missed_slots_are_made_good_as_the_job_says(db: PgPool) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    let (schedule, latest) = hourly(&db).await;
    let known = "insert into coordination.cron_jobs (job, schedule, catch_up, owes_since)
        values ('note', $1, $2, $3 - interval '3 hours 30 minutes')";

    for (catch_up, expected) in [
        (CatchUp::None, 0),
        (CatchUp::Last, 1),
        (CatchUp::All(TimeDelta::hours(24)), 4),
    ] {
        for table in [
            "delete from coordination.cron_runs",
            "delete from coordination.cron_jobs",
        ] {
            sqlx::query(table).execute(&db).await.unwrap();
        }
        let known = sqlx::query(known).bind(&schedule);
        let known = known.bind(catch_up.to_string()).bind(latest);
        known.execute(&db).await.unwrap();
        let seen = Seen::default();
        let instance = vec![(
            cron(&stores, &db, "a"),
            vec![noting(&seen, &schedule).catch_up(catch_up)],
        )];
        while_running(
            instance,
            "what is owed has run, and then a run asked for",
            async || {
                if seen.lock().unwrap().len() == expected
                    && admin
                        .history("note", 9)
                        .await
                        .unwrap()
                        .iter()
                        .all(|run| !run.manual)
                {
                    admin.trigger("note").await.unwrap();
                }
                seen.lock().unwrap().len() > expected
            },
        )
        .await;

        let runs = admin.history("note", 100).await.unwrap();
        let mut slots: Vec<_> = runs
            .iter()
            .filter(|run| !run.manual)
            .map(|run| run.slot)
            .collect();
        slots.reverse();
        assert_eq!(slots.len(), expected, "{catch_up:?}");
        assert!(slots.is_sorted());
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn failures_time_outs_and_panics_are_written_down(db: PgPool) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    let jobs = || {
        vec![
            Job::new("fails", "* * * * * *", |_| async {
                anyhow::bail!("no luck")
            }),
            Job::new("panics", "* * * * * *", |_| async { panic!("as told") }),
            waiting("hangs", "* * * * * *").timeout(Duration::from_millis(50)),
        ]
    };
    let state = async |job| {
        admin
            .history(job, 100)
            .await
            .unwrap()
            .pop()
            .map(|run| run.state)
    };

    while_running(
        vec![(cron(&stores, &db, "a"), jobs())],
        "each has failed",
        async || {
            let failed = Some("failed".to_owned());
            state("fails").await == failed
                && state("panics").await == failed
                && state("hangs").await == failed
        },
    )
    .await;

    let overview = admin.overview(3).await.unwrap();
    assert_eq!(overview.len(), 3);
    assert!(
        overview
            .iter()
            .all(|job| job.next_runs.len() == 3 && job.last.is_some())
    );
    assert_eq!(
        admin
            .history("fails", 100)
            .await
            .unwrap()
            .pop()
            .unwrap()
            .error
            .as_deref(),
        Some("no luck")
    );
    assert!(matches!(
        admin.trigger("nothing").await,
        Err(CronError::UnknownJob { .. })
    ));
    let twice = vec![waiting("a", NEVER), waiting("a", NEVER)];
    let replica = cron(&stores, &db, "b");
    let twice = replica.clone().run(twice, CancellationToken::new()).await;
    assert!(matches!(twice, Err(CronError::Duplicate { .. })));
    let wrong = replica
        .run(vec![waiting("a", "soon")], CancellationToken::new())
        .await;
    assert!(matches!(wrong, Err(CronError::Schedule { .. })));
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_clock_that_was_put_back_silences_no_job(db: PgPool) {
    let stores = stores().await;
    let seen = Seen::default();
    // Begun while the clock of the database stood an hour ahead.
    sqlx::query(
        "insert into coordination.cron_runs (job, slot, token, instance, state, started_at)
        values ('note', date_trunc('hour', now()) + interval '1 hour', 1, 'a', 'succeeded', now())",
    )
    .execute(&db)
    .await
    .unwrap();

    let instances = vec![(cron(&stores, &db, "a"), vec![noting(&seen, "* * * * * *")])];
    while_running(instances, "slots run", async || {
        seen.lock().unwrap().len() >= 2
    })
    .await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_thousand_idle_jobs_are_looked_at_together_and_left_alone(db: PgPool) {
    let stores = stores().await;
    let idle = (0..1000).map(|n| waiting(String::leak(format!("idle-{n}")), NEVER));
    let replica = cron(&stores, &db, "a");
    let mut scheduler = Scheduler::new(replica, idle.collect(), CancellationToken::new()).unwrap();
    scheduler.tick().await.unwrap();

    let pause = scheduler.tick().await.unwrap();

    assert!(pause > Duration::from_secs(4), "{pause:?}");
    let begun: i64 = sqlx::query_scalar("select count(*) from coordination.cron_runs")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(begun, 0);
    let start = std::time::Instant::now();
    for _ in 0..100 {
        scheduler.tick().await.unwrap();
    }
    println!("a tick of 1000 idle jobs takes {:?}", start.elapsed() / 100);
}

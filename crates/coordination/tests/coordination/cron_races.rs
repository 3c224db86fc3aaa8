//! Cron where two things happen at once: a replica that sleeps with the lock in hand, policies that change between two
//! attempts, history that goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use coordination::{CatchUp, CronError, Job, Overlap};
use fred::interfaces::ClientLike;
use fred::types::CustomCommand;
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cron::{NEVER, Seen, cron, hourly, noting, while_running};
use crate::stores::{Stores, stores, until};

pub async fn change(db: &PgPool, sql: &'static str) {
    sqlx::query(sql).execute(db).await.unwrap();
}

pub async fn number(db: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(db).await.unwrap()
}

async fn redis(stores: &Stores, command: &'static str, words: &[&str]) -> i64 {
    let command = CustomCommand::new_static(command, None::<u16>, false);
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    stores.redis.custom(command, words).await.unwrap()
}

/// Stops a replica between winning the lock and beginning the slot that was due, until `meanwhile` has happened; it must
/// then begin nothing.
async fn sleeps_before_it_begins(db: &PgPool, overlap: Overlap, meanwhile: &'static str) {
    let stores = stores().await;
    let seen = Seen::default();
    let (schedule, slot) = hourly(db).await;
    let known = "insert into coordination.cron_jobs (job, schedule, catch_up, owes_since, seen_at)
        values ('note', $1, 'last', now() - interval '2 hours', '2000-01-01')";
    let known = sqlx::query(known).bind(&schedule).execute(db).await;
    known.unwrap();
    let key = match overlap {
        Overlap::Allow => stores
            .keys
            .cron(&format!("note:{}", slot.timestamp_micros())),
        _ => stores.keys.cron("note"),
    };
    redis(&stores, "SETNX", &[&key, "another"]).await;
    let stop = CancellationToken::new();
    let replica = cron(&stores, db, "a");
    let job = noting(&seen, &schedule).overlap(overlap);
    let running = JoinSet::from_iter([replica.run(vec![job], stop.clone())]);
    until("the replica runs the job", async || {
        number(
            db,
            "select count(*) from coordination.cron_jobs where seen_at > '2001-01-01'",
        )
        .await
            == 1
    })
    .await;

    let mut tx = db.begin().await.unwrap();
    sqlx::query("select from coordination.cron_jobs for update")
        .execute(&mut *tx)
        .await
        .unwrap();
    stores.delete(&key).await;
    until("it has the lock and is about to begin", async || {
        let waiting = "select count(*) from pg_stat_activity where datname = current_database()
            and wait_event_type = 'Lock' and query like '-- cron::hold%'";
        number(db, waiting).await == 1
    })
    .await;
    assert_eq!(redis(&stores, "EXISTS", &[&key]).await, 1);
    sqlx::query(meanwhile).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    until("it has given the lock back", async || {
        redis(&stores, "EXISTS", &[&key]).await == 0
    })
    .await;
    stop.cancel();
    for ended in running.join_all().await {
        ended.unwrap();
    }

    assert!(seen.lock().unwrap().is_empty());
    let theirs = "select count(*) from coordination.cron_runs where instance = 'a'";
    assert_eq!(number(db, theirs).await, 0);
    let fences = "select count(*) from coordination.fences";
    assert_eq!(number(db, fences).await, 0, "nobody was made late");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_replica_that_slept_with_the_lock_begins_no_slot_of_a_job_that_was_paused_since(
    db: PgPool,
) {
    let pause = "update coordination.cron_jobs set paused_at = now()";
    sleeps_before_it_begins(&db, Overlap::QueueOne, pause).await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_replica_that_slept_with_the_lock_begins_no_slot_of_a_pause_that_is_over(db: PgPool) {
    let resumed = "update coordination.cron_jobs set owes_since = clock_timestamp()";
    sleeps_before_it_begins(&db, Overlap::QueueOne, resumed).await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_replica_that_slept_with_the_lock_does_not_overlap_with_who_came_first(db: PgPool) {
    let begun = "insert into coordination.cron_runs (job, slot, token, instance, state, started_at, alive_at)
        values ('note', now() - interval '1 second', 7, 'b', 'running', now(), clock_timestamp())";
    sleeps_before_it_begins(&db, Overlap::QueueOne, begun).await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_replica_that_slept_with_the_lock_does_not_begin_one_more_than_may_overlap(db: PgPool) {
    let begun = "insert into coordination.cron_runs (job, slot, token, instance, state, started_at, alive_at, manual)
        select 'note', now() - make_interval(secs => n), 7, 'b', 'running', now(), clock_timestamp(), true
        from generate_series(1, 16) n";
    sleeps_before_it_begins(&db, Overlap::Allow, begun).await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn an_open_run_is_taken_over_with_a_higher_token_whatever_policy_it_was_begun_under(
    db: PgPool,
) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    for (overlap, earlier) in [
        (
            Overlap::Allow,
            "insert into coordination.fences (key, token) values ('cron:note', 57)",
        ),
        (
            Overlap::QueueOne,
            "insert into coordination.fences (key, token)
                select 'cron:note:' || (extract(epoch from slot) * 1000000)::bigint, 57 from coordination.cron_runs",
        ),
    ] {
        for sql in [
            "delete from coordination.fences",
            "delete from coordination.cron_runs",
            "insert into coordination.cron_runs (job, slot, manual, token, instance, state, started_at)
                values ('note', clock_timestamp(), true, 57, 'old', 'abandoned', now())",
            earlier,
        ] {
            change(&db, sql).await;
        }
        let seen = Seen::default();
        let job = noting(&seen, NEVER).overlap(overlap);
        let replica = vec![(cron(&stores, &db, "a"), vec![job])];
        while_running(replica, "the run is made good", async || {
            admin.history("note", 1).await.unwrap()[0].state == "succeeded"
        })
        .await;

        assert_eq!(seen.lock().unwrap()[0].1, 58, "{overlap:?}");
        let late = "select count(*) from coordination.fences where token <= 57";
        assert_eq!(number(&db, late).await, 0, "the earlier holder is late");
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn slots_whose_history_is_deleted_are_not_run_again(db: PgPool) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    for sql in [
        "insert into coordination.cron_jobs (job, schedule, catch_up, owes_since)
            values ('note', '0 0 * * *', 'all(5184000s)', now() - interval '50 days')",
        "insert into coordination.cron_runs (job, slot, scheduled_at, state, token, instance, started_at)
            select 'note', slot, slot, 'succeeded', 1, 'a', slot
            from generate_series(date_trunc('day', now(), 'UTC') - interval '50 days', now(), interval '1 day') slot",
    ] {
        change(&db, sql).await;
    }
    assert!(admin.purge_history(TimeDelta::days(30), 500).await.unwrap() >= 20);

    let (seen, ran) = (Seen::default(), Arc::new(AtomicUsize::new(0)));
    let counted = ran.clone();
    let job = noting(&seen, "0 0 * * *").catch_up(CatchUp::All(TimeDelta::days(60)));
    // Attended to in the order of their names, in the same ticks.
    let other = Job::new("zzz", "* * * * * *", move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok(()) }
    });
    while_running(
        vec![(cron(&stores, &db, "a"), vec![job, other])],
        "another job has run three times",
        async || ran.load(Ordering::SeqCst) >= 3,
    )
    .await;

    assert!(seen.lock().unwrap().is_empty());
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_debt_of_more_than_a_thousand_slots_is_worked_off_from_its_oldest(db: PgPool) {
    let stores = stores().await;
    change(
        &db,
        "insert into coordination.cron_jobs (job, schedule, catch_up, owes_since)
        values ('note', '* * * * *', 'all(86400s)', date_trunc('minute', now()) - interval '1200 minutes')",
    )
    .await;
    let oldest: DateTime<Utc> = sqlx::query_scalar(
        "select owes_since + interval '1 minute' from coordination.cron_jobs where job = 'note'",
    )
    .fetch_one(&db)
    .await
    .unwrap();
    let seen = Seen::default();
    let job = noting(&seen, "* * * * *").catch_up(CatchUp::All(TimeDelta::days(1)));
    while_running(
        vec![(cron(&stores, &db, "a"), vec![job])],
        "three slots have run",
        async || seen.lock().unwrap().len() >= 3,
    )
    .await;

    let slots: Vec<_> = seen.lock().unwrap().iter().map(|(slot, _)| *slot).collect();
    let minute = TimeDelta::minutes(1);
    assert_eq!(slots[..3], [oldest, oldest + minute, oldest + minute * 2]);
}

#[sqlx::test(migrations = "../../migrations")]
async fn slots_that_a_restored_database_knows_nothing_of_are_made_good_by_who_ran_them(db: PgPool) {
    let stores = stores().await;
    let replica = cron(&stores, &db, "a");
    let admin = replica.jobs();
    change(
        &db,
        "insert into coordination.cron_jobs (job, schedule, catch_up, owes_since)
        values ('note', '0 * * * *', 'all(86400s)', date_trunc('hour', now(), 'UTC') - interval '6 hours')",
    )
    .await;
    let seen = Seen::default();
    let job = noting(&seen, "0 * * * *").catch_up(CatchUp::All(TimeDelta::days(1)));
    let by_schedule = "select count(*) from coordination.cron_runs where not manual";
    let restored = AtomicUsize::new(0);
    while_running(
        vec![(replica, vec![job])],
        "all have run, and the latest three once more",
        async || {
            let runs = admin.history("note", 100).await.unwrap();
            let is_done = runs.iter().all(|run| run.state == "succeeded");
            if !is_done || number(&db, by_schedule).await < 6 {
                return false;
            }
            // A run that is asked for leaves the replica the time to see that nothing else is owed.
            let asked = runs.iter().filter(|run| run.manual).count();
            match restored.load(Ordering::SeqCst) {
                0 if asked == 0 => {
                    admin.trigger("note").await.unwrap();
                }
                0 => {
                    change(
                        &db,
                        "delete from coordination.cron_runs where slot in (
                            select slot from coordination.cron_runs where not manual order by slot desc limit 3)",
                    )
                    .await;
                    restored.store(1, Ordering::SeqCst);
                    // Has it look at the job.
                    admin.trigger("note").await.unwrap();
                }
                _ => return asked == 2,
            }
            false
        },
    )
    .await;

    let mut slots: Vec<_> = seen.lock().unwrap().iter().map(|(slot, _)| *slot).collect();
    slots.retain(|slot| slot.timestamp_micros() % 3_600_000_000 == 0);
    let all = slots.len();
    slots.sort();
    slots.dedup();
    assert!(slots.len() >= 6 && all == slots.len() + 3, "{slots:?}");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_run_is_asked_for_once_of_somebody_and_not_for_ever(db: PgPool) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    change(
        &db,
        "insert into coordination.cron_jobs (job, schedule, catch_up) values ('note', '0 0 29 2 *', 'last')",
    )
    .await;

    let slot = admin.trigger("note").await.unwrap();
    assert_eq!(admin.trigger("note").await.unwrap(), slot);
    change(
        &db,
        "update coordination.cron_jobs set seen_at = now() - interval '2 minutes'",
    )
    .await;
    let refused = admin.trigger("note").await;
    assert!(
        matches!(refused, Err(CronError::Unheard { .. })),
        "{refused:?}"
    );

    change(
        &db,
        "update coordination.cron_runs set slot = slot - interval '61 minutes'",
    )
    .await;
    let seen = Seen::default();
    while_running(
        vec![(cron(&stores, &db, "a"), vec![noting(&seen, NEVER)])],
        "the old request is given up",
        async || admin.history("note", 1).await.unwrap()[0].state == "skipped",
    )
    .await;
    assert!(seen.lock().unwrap().is_empty());
}

#[sqlx::test(migrations = "../../migrations")]
async fn who_asks_again_when_a_request_has_grown_old_has_it_run(db: PgPool) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    change(
        &db,
        "insert into coordination.cron_jobs (job, schedule, catch_up) values ('note', '0 0 29 2 *', 'last')",
    )
    .await;
    let first = admin.trigger("note").await.unwrap();
    change(
        &db,
        "update coordination.cron_runs set slot = slot - interval '61 minutes'",
    )
    .await;

    let again = admin.trigger("note").await.unwrap();

    assert!(again > first);
    let seen = Seen::default();
    while_running(
        vec![(cron(&stores, &db, "a"), vec![noting(&seen, NEVER)])],
        "it has run",
        async || !seen.lock().unwrap().is_empty(),
    )
    .await;
    assert_eq!(seen.lock().unwrap()[0].0, again);
    assert_eq!(admin.history("note", 9).await.unwrap().len(), 1);
}

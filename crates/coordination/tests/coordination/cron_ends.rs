//! How a run ends: what is written down of it, by whom, and whether the attempt counts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coordination::{Job, Run};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::cron::{NEVER, Seen, cron, noting, while_running};
use crate::cron_races::{change, number};
use crate::stores::{stores, until};

#[sqlx::test(migrations = "../../migrations")]
async fn a_run_that_succeeded_is_not_run_again_because_of_trouble_in_the_database_at_its_end(
    db: PgPool,
) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    // Eleven answers to the end of a run are those of a server that is busy or in trouble; the sequence counts them.
    for sql in [
        "create sequence tries",
        "create function refuse() returns trigger language plpgsql as $$ begin
            if nextval('tries') <= 11 then
                raise exception 'not now' using errcode =
                    (array['40P01', '40001', '58030', 'XX000'])[1 + currval('tries') % 4];
            end if;
            return new;
        end $$",
        "create trigger refuse before update on coordination.cron_runs for each row
            when (new.state = 'succeeded') execute function refuse()",
    ] {
        change(&db, sql).await;
    }
    let seen = Seen::default();
    let replicas = ["a", "b"]
        .map(|name| (cron(&stores, &db, name), vec![noting(&seen, NEVER)]))
        .to_vec();
    while_running(replicas, "the end is written down", async || {
        let _ = match admin.history("note", 1).await.unwrap().first() {
            None => admin.trigger("note").await.is_ok(),
            Some(run) => return run.state == "succeeded",
        };
        false
    })
    .await;

    assert_eq!(number(&db, "select last_value from tries").await, 12);
    let run = admin.history("note", 1).await.unwrap().remove(0);
    assert_eq!((run.attempt, seen.lock().unwrap().len()), (1, 1));
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_run_completed_with_its_effect_is_not_run_again_though_its_process_died_right_after(
    db: PgPool,
) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    // A process of its own, as it were: shut down, none of its tasks gets to say goodbye.
    let process = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let other = PgPool::connect_lazy_with((*db.connect_options()).clone());
    let effects = other.clone();
    let job = Job::new("effect", NEVER, move |run: Run| {
        let effects = effects.clone();
        async move {
            let mut tx = run.guard().begin(&effects).await?;
            run.complete(&mut tx).await?;
            tx.commit().await?;
            std::future::pending().await
        }
    });
    let doomed = cron(&stores, &other, "doomed").run(vec![job], CancellationToken::new());
    let task = process.handle().spawn(doomed);
    until("the effect is there", async || {
        let _ = match admin.history("effect", 1).await.unwrap().first() {
            None => admin.trigger("effect").await.is_ok(),
            Some(run) => return run.state == "succeeded",
        };
        false
    })
    .await;
    process.shutdown_background();
    drop(task);
    stores.delete(&stores.keys.cron("effect")).await;
    let silence = "update coordination.cron_runs set alive_at = alive_at - interval '1 minute'";
    change(&db, silence).await;

    let (again, other) = (Arc::new(AtomicUsize::new(0)), Seen::default());
    let counted = again.clone();
    let job = Job::new("effect", NEVER, move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok(()) }
    });
    let heir = vec![(
        cron(&stores, &db, "heir"),
        vec![job, noting(&other, "* * * * * *")],
    )];
    while_running(heir, "another job has run three times", async || {
        other.lock().unwrap().len() >= 3
    })
    .await;

    assert_eq!(again.load(Ordering::SeqCst), 0);
    let run = admin.history("effect", 9).await.unwrap().remove(0);
    assert_eq!((run.state.as_str(), run.attempt), ("succeeded", 1));
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_completed_run_stays_so_whatever_its_body_says_and_a_late_one_cannot_complete(
    db: PgPool,
) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    let pool = db.clone();
    let fails = Job::new("fails", NEVER, move |run: Run| {
        let pool = pool.clone();
        async move {
            let mut tx = pool.begin().await?;
            run.complete(&mut tx).await?;
            tx.commit().await?;
            anyhow::bail!("after all")
        }
    })
    .pause_after(1);
    let pool = db.clone();
    let late = Job::new("late", NEVER, move |run: Run| {
        let pool = pool.clone();
        async move {
            sqlx::query("update coordination.cron_runs set token = token + 1 where job = 'late'")
                .execute(&pool)
                .await?;
            let mut tx = pool.begin().await?;
            let refused = run.complete(&mut tx).await.unwrap_err();
            assert!(refused.is_fenced(), "{refused}");
            anyhow::bail!("late")
        }
    });
    while_running(
        vec![(cron(&stores, &db, "a"), vec![fails, late])],
        "both have given their account",
        async || {
            for job in ["fails", "late"] {
                if admin.history(job, 1).await.unwrap().is_empty() {
                    let _ = admin.trigger(job).await;
                }
            }
            number(
                &db,
                "select count(*) from coordination.cron_attempts where accepted is not null",
            )
            .await
                == 2
        },
    )
    .await;

    let outcomes: Vec<(String, String, bool)> = sqlx::query_as(
        "select job, outcome, accepted from coordination.cron_attempts order by job",
    )
    .fetch_all(&db)
    .await
    .unwrap();
    let expected = [
        ("fails".to_owned(), "succeeded".to_owned(), true),
        ("late".to_owned(), "failed".to_owned(), false),
    ];
    assert_eq!(outcomes, expected);
    let told = admin.overview(1).await.unwrap().remove(0).told;
    assert_eq!((told.failures, told.paused_at), (0, None));
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_failure_is_written_down_whatever_its_text(db: PgPool) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    for sql in [
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'never'; end $$",
        "create trigger refuse before update on coordination.cron_runs for each row
            when (new.error = 'unwelcome') execute function refuse()",
    ] {
        change(&db, sql).await;
    }
    let failing = |name, text: &'static str| {
        Job::new(name, NEVER, move |_| async move {
            Err(anyhow::Error::msg(text))
        })
    };
    let jobs = vec![failing("nul", "no\0luck"), failing("refused", "unwelcome")];
    while_running(
        vec![(cron(&stores, &db, "a"), jobs)],
        "both have failed",
        async || {
            let mut failed = 0;
            for job in ["nul", "refused"] {
                match admin.history(job, 1).await.unwrap().first() {
                    None => drop(admin.trigger(job).await),
                    Some(run) => failed += usize::from(run.state == "failed"),
                }
            }
            failed == 2
        },
    )
    .await;

    let error = async |job| {
        admin
            .history(job, 1)
            .await
            .unwrap()
            .remove(0)
            .error
            .unwrap()
    };
    assert_eq!(error("nul").await, "no\u{fffd}luck");
    let instead = error("refused").await;
    assert!(instead.starts_with("the database refused"), "{instead}");
}

#[sqlx::test(migrations = "../../migrations")]
async fn the_error_of_a_run_stands_in_the_history_in_spite_of_deadlocks_and_of_one_refusal(
    db: PgPool,
) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    for sql in [
        "create sequence deadlocks",
        "create sequence refusals",
        "create function refuse() returns trigger language plpgsql as $$ begin
            if new.job = 'deadlocked' and nextval('deadlocks') <= 3 then
                raise exception 'a deadlock' using errcode = 'deadlock_detected';
            elsif new.job = 'refused' and nextval('refusals') <= 1 then
                raise exception 'once';
            end if;
            return new;
        end $$",
        "create trigger refuse before update on coordination.cron_runs for each row
            when (new.state = 'failed') execute function refuse()",
    ] {
        change(&db, sql).await;
    }
    let jobs = ["deadlocked", "refused"].map(|name| {
        Job::new(name, NEVER, |_| async { anyhow::bail!("the true reason") }).pause_after(1)
    });
    while_running(
        vec![(cron(&stores, &db, "a"), jobs.to_vec())],
        "both are paused",
        async || {
            for job in ["deadlocked", "refused"] {
                if admin.history(job, 1).await.unwrap().is_empty() {
                    let _ = admin.trigger(job).await;
                }
            }
            number(
                &db,
                "select count(*) from coordination.cron_jobs where paused_at is not null",
            )
            .await
                == 2
        },
    )
    .await;

    for job in admin.overview(1).await.unwrap() {
        let error = job.last.unwrap().error.unwrap();
        let reason = job.told.pause_reason.unwrap();
        assert_eq!(error, "the true reason");
        assert!(reason.ends_with("the true reason"), "{reason}");
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_run_whose_end_the_database_never_takes_is_given_up_and_its_lock_given_back(db: PgPool) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    for sql in [
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'never'; end $$",
        "create trigger refuse before update on coordination.cron_runs for each row
            when (new.state = 'succeeded') execute function refuse()",
    ] {
        change(&db, sql).await;
    }
    let seen = Seen::default();
    while_running(
        vec![(cron(&stores, &db, "a"), vec![noting(&seen, NEVER)])],
        "it has run, and nobody has the lock",
        async || {
            if admin.history("note", 1).await.unwrap().is_empty() {
                let _ = admin.trigger("note").await;
            }
            !seen.lock().unwrap().is_empty() && !stores.exists(&stores.keys.cron("note")).await
        },
    )
    .await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_lost_lock_uses_no_attempt_up_unless_it_is_lost_again_and_again(db: PgPool) {
    let stores = stores().await;
    for sql in [
        "insert into coordination.cron_jobs (job, schedule, catch_up)
            values ('unlucky', '0 0 29 2 *', 'last'), ('starving', '0 0 29 2 *', 'last')",
        "insert into coordination.cron_runs (job, slot, manual, token, instance, state, started_at)
            select job, clock_timestamp(), true, 10, 'b', 'abandoned', clock_timestamp() from coordination.cron_jobs",
        "insert into coordination.cron_attempts (job, slot, token, instance, outcome, accepted)
            select job, slot, n, 'b', 'abandoned', true from coordination.cron_runs, generate_series(1, 10) n
            where job = 'starving'",
    ] {
        change(&db, sql).await;
    }
    let attempts: Arc<Mutex<Vec<(&str, u32)>>> = Arc::default();
    let jobs = ["unlucky", "starving"].map(|name| {
        let attempts = attempts.clone();
        Job::new(name, NEVER, move |run: Run| {
            let attempts = attempts.clone();
            async move {
                let is_first = {
                    let mut attempts = attempts.lock().unwrap();
                    attempts.push((run.job, run.attempt));
                    attempts.iter().filter(|(job, _)| *job == run.job).count() == 1
                };
                if is_first {
                    run.cancelled.cancelled().await;
                    anyhow::bail!("cancelled");
                }
                Ok(())
            }
        })
    });
    let begun = |name| attempts.lock().unwrap().iter().any(|(job, _)| *job == name);
    let robbed = Mutex::new(Vec::new());
    while_running(
        vec![(cron(&stores, &db, "a"), jobs.to_vec())],
        "both have lost their lock, and ended in the next attempt",
        async || {
            for name in ["unlucky", "starving"] {
                if begun(name) && !robbed.lock().unwrap().contains(&name) {
                    stores.delete(&stores.keys.cron(name)).await;
                    robbed.lock().unwrap().push(name);
                }
            }
            number(
                &db,
                "select count(*) from coordination.cron_runs where state = 'succeeded'",
            )
            .await
                == 2
        },
    )
    .await;

    let attempts = attempts.lock().unwrap().clone();
    let of = |name| {
        let of = attempts.iter().filter(|(job, _)| *job == name);
        of.map(|(_, attempt)| *attempt).collect::<Vec<_>>()
    };
    assert_eq!(of("unlucky"), [2, 2]);
    assert_eq!(of("starving"), [2, 3]);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_run_that_takes_too_long_has_used_its_attempt(db: PgPool) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    let job =
        Job::new("hangs", NEVER, |_| std::future::pending()).timeout(Duration::from_millis(50));
    let replica = cron(&stores, &db, "a").with_grace(Duration::from_millis(50));
    while_running(vec![(replica, vec![job])], "it has failed", async || {
        match admin.history("hangs", 1).await.unwrap().first() {
            None => drop(admin.trigger("hangs").await),
            Some(run) => return run.state == "failed",
        }
        false
    })
    .await;

    assert_eq!(admin.history("hangs", 1).await.unwrap()[0].attempt, 1);
}

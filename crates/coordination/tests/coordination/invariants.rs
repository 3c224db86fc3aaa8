//! Invariants: what is found counts once, for the whole cluster, and not before it is sure.

use std::sync::{Arc, Mutex};

use coordination::cron::CatchUp;
use coordination::{Check, Finding, Invariants, Job};
use serde_json::json;
use sqlx::PgPool;

use crate::cron::{NEVER, Seen, cron, noting, while_running};
use crate::stores::stores;

type Scene = Arc<Mutex<Vec<(&'static str, bool)>>>;

/// A check that finds what the scene holds.
fn check(scene: &Scene) -> Check {
    let scene = scene.clone();
    Check::new("thing", "invariants-thing", move || {
        let found = scene.lock().unwrap().clone();
        async move {
            let finding = |(subject, certain): (&str, bool)| Finding {
                subject: subject.to_owned(),
                detail: json!({}),
                certain,
            };
            Ok(found.into_iter().map(finding).collect())
        }
    })
}

/// Makes the looks of the past older, so that the next one is another.
async fn a_minute_passes(db: &PgPool) {
    let aged = "update coordination.findings
        set counted_at = counted_at - interval '1 minute', last_seen_at = last_seen_at - interval '1 minute'";
    sqlx::query(aged).execute(db).await.unwrap();
}

async fn total(invariants: &Invariants, invariant: &str) -> i64 {
    let report = invariants.report(10).await.unwrap();
    let found = report
        .invariants
        .iter()
        .find(|each| each.invariant == invariant);
    found.map_or(0, |each| each.total)
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_certain_finding_counts_at_once_and_once_and_for_ever(db: PgPool) {
    let (a, b) = (
        Invariants::new(db.clone(), "a".into()),
        Invariants::new(db, "b".into()),
    );
    let scene = Scene::default();

    a.look(&check(&scene)).await.unwrap();
    let report = b.report(10).await.unwrap();
    assert_eq!(
        (
            report.invariants[0].total,
            report.invariants[0].instance.as_str()
        ),
        (0, "a")
    );

    scene
        .lock()
        .unwrap()
        .extend([("x", true), ("x", true), ("y", true)]);
    a.look(&check(&scene)).await.unwrap();
    b.look(&check(&scene)).await.unwrap();
    scene.lock().unwrap().clear();
    b.look(&check(&scene)).await.unwrap();

    assert_eq!(total(&a, "thing").await, 2);
    assert_eq!(total(&b, "thing").await, 2);
}

#[sqlx::test(migrations = "../../migrations")]
async fn what_may_be_a_moments_disagreement_counts_when_three_looks_in_a_row_see_it(db: PgPool) {
    let invariants = Invariants::new(db.clone(), "a".into());
    let scene = Scene::default();
    let look = async |seen: &[(&'static str, bool)]| {
        *scene.lock().unwrap() = seen.to_vec();
        a_minute_passes(&db).await;
        invariants.look(&check(&scene)).await.unwrap();
        total(&invariants, "thing").await
    };

    assert_eq!(look(&[("x", false)]).await, 0);
    assert_eq!(look(&[("x", false)]).await, 0);
    assert_eq!(look(&[]).await, 0, "it passed");
    assert_eq!(look(&[("x", false)]).await, 0);
    assert_eq!(look(&[("x", false)]).await, 0);
    // An outage of the checks: what they see right after it is not what they saw all the time.
    let outage =
        "update coordination.findings set last_seen_at = last_seen_at - interval '10 minutes'";
    sqlx::query(outage).execute(&db).await.unwrap();
    assert_eq!(look(&[("x", false)]).await, 0);
    assert_eq!(look(&[("x", false)]).await, 0);
    // Looks that follow each other at once, because somebody asks for them, are one.
    for _ in 0..5 {
        invariants.look(&check(&scene)).await.unwrap();
        assert_eq!(total(&invariants, "thing").await, 0);
    }
    assert_eq!(look(&[("x", false)]).await, 1);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_check_that_fails_is_told_and_proves_nothing(db: PgPool) {
    let invariants = Invariants::new(db, "a".into());
    let scene = Scene::default();
    invariants.look(&check(&scene)).await.unwrap();
    let before = invariants.report(1).await.unwrap().invariants.remove(0);

    let broken = Check::new("thing", "invariants-thing", || async {
        anyhow::bail!("no\0store")
    });
    assert!(invariants.look(&broken).await.is_err());

    let after = invariants.report(1).await.unwrap().invariants.remove(0);
    assert_eq!(after.error.as_deref(), Some("no\u{fffd}store"));
    assert_eq!(after.checked_at, before.checked_at);
}

#[sqlx::test(migrations = "../../migrations")]
async fn slots_run_by_three_replicas_leave_neither_duplicates_nor_gaps(db: PgPool) {
    let stores = stores().await;
    let invariants = Invariants::new(db.clone(), "a".into());
    let seen = Seen::default();
    let every = CatchUp::All(chrono::TimeDelta::hours(1));
    let replicas = ["a", "b", "c"]
        .map(|name| {
            let job = noting(&seen, "* * * * * *").catch_up(every);
            (cron(&stores, &db, name), vec![job])
        })
        .to_vec();
    while_running(replicas, "four slots have run", async || {
        seen.lock().unwrap().len() >= 4
    })
    .await;

    // The slots grow old, and the job has owed them all the time.
    for aged in [
        "update coordination.cron_jobs set owes_since = (select min(slot) from coordination.cron_runs) - interval '2 minutes'",
        "alter table coordination.cron_attempts drop constraint cron_attempts_job_slot_fkey",
        "update coordination.cron_attempts set slot = slot - interval '2 minutes'",
        "update coordination.cron_runs set slot = slot - interval '2 minutes'",
        "update coordination.cron_jobs set owes_since = (select min(slot) from coordination.cron_runs) - interval '1 second'",
    ] {
        sqlx::query(aged).execute(&db).await.unwrap();
    }
    let newest: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select max(slot) from coordination.cron_runs")
            .fetch_one(&db)
            .await
            .unwrap();
    let look = async || {
        for check in invariants.checks() {
            invariants.look(&check).await.unwrap();
        }
        let report = invariants.report(1000).await.unwrap();
        let of = |name: &str| {
            let each = report.invariants.iter().find(|each| each.invariant == name);
            let found = each.unwrap().findings.iter();
            found
                .map(|found| found.detail["slot"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        (of("cron_slot_duplicates"), of("cron_slot_gaps"))
    };

    let (duplicates, gaps) = look().await;
    assert!(duplicates.is_empty(), "{duplicates:?}");
    // Those after the last one were owed as well, for this table says that the job was there.
    let earlier = gaps
        .iter()
        .filter(|slot| slot.parse::<chrono::DateTime<chrono::Utc>>().unwrap() <= newest);
    assert_eq!(earlier.count(), 0, "{gaps:?}");

    // What a defect would leave behind is found.
    for defect in [
        "delete from coordination.cron_runs where slot = (select slot from coordination.cron_runs order by slot offset 1 limit 1)",
        "insert into coordination.cron_attempts
            select job, slot, token + 100, instance, started_at, finished_at, outcome, false
            from coordination.cron_attempts order by slot limit 1",
    ] {
        sqlx::query(defect).execute(&db).await.unwrap();
    }
    let (duplicates, gaps) = look().await;
    assert_eq!(duplicates.len(), 1);
    let earlier = gaps
        .iter()
        .filter(|slot| slot.parse::<chrono::DateTime<chrono::Utc>>().unwrap() <= newest);
    assert_eq!(earlier.count(), 1, "{gaps:?}");
    assert_eq!(total(&invariants, "cron_slot_duplicates").await, 1);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_slot_that_is_owed_and_not_run_is_a_gap_unless_the_job_is_paused_or_unheard_of(
    db: PgPool,
) {
    let invariants = Invariants::new(db.clone(), "a".into());
    let job = "insert into coordination.cron_jobs (job, schedule, catch_up, owes_since)
        values ('note', '* * * * *', 'last', now() - interval '1 hour')";
    sqlx::query(job).execute(&db).await.unwrap();
    let gaps = async || {
        let gaps = invariants.checks().remove(1);
        invariants.look(&gaps).await.unwrap();
        invariants.report(10).await.unwrap().invariants[0]
            .findings
            .len()
    };
    let change = async |sql: &'static str| sqlx::query(sql).execute(&db).await.unwrap();

    assert_eq!(gaps().await, 1);
    change("update coordination.cron_jobs set paused_at = now()").await;
    assert_eq!(gaps().await, 0);
    change("update coordination.cron_jobs set paused_at = null, seen_at = now() - interval '3 minutes'").await;
    assert_eq!(gaps().await, 0);
    change("update coordination.cron_jobs set seen_at = now(), catch_up = 'none'").await;
    assert_eq!(gaps().await, 0);
    change("update coordination.cron_jobs set catch_up = 'all(600s)'").await;
    assert_eq!(gaps().await, 1, "the oldest one");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_job_that_is_stuck_is_confirmed_although_its_latest_slot_is_another_one_each_time(
    db: PgPool,
) {
    let invariants = Invariants::new(db.clone(), "a".into());
    for sql in [
        "insert into coordination.cron_jobs (job, schedule, catch_up, owes_since)
            values ('note', '* * * * * *', 'last', now() - interval '1 hour'),
                ('every', '* * * * * *', 'all(600s)', now() - interval '1 hour'),
                ('many', '* * * * * *', 'all(5184000s)', now() - interval '60 days')",
        "insert into coordination.cron_runs (job, slot, token, instance, state, started_at, alive_at, attempt)
            values ('note', date_trunc('second', now()) - interval '30 minutes', 1, 'b', 'running', now(), now() - interval '30 minutes', 1)",
    ] {
        sqlx::query(sql).execute(&db).await.unwrap();
    }
    for _ in 0..3 {
        a_minute_passes(&db).await;
        invariants
            .look(&invariants.checks().remove(1))
            .await
            .unwrap();
    }

    // The slots of three jobs that nobody begins, and the run whose holder has gone and which nobody takes over.
    assert_eq!(total(&invariants, "cron_slot_gaps").await, 4);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_slot_that_waits_because_as_many_runs_go_on_as_may_is_no_gap(db: PgPool) {
    let invariants = Invariants::new(db.clone(), "a".into());
    for sql in [
        "insert into coordination.cron_jobs (job, schedule, catch_up, overlap, owes_since)
            values ('note', '* * * * *', 'last', 'allow', now() - interval '1 hour')",
        "insert into coordination.cron_runs (job, slot, token, instance, state, started_at, alive_at, attempt)
            select 'note', date_trunc('minute', now()) - interval '10 minutes' - n * interval '1 minute',
                n, 'b', 'running', now(), now() + interval '1 hour', 1
            from generate_series(1, 16) n",
    ] {
        sqlx::query(sql).execute(&db).await.unwrap();
    }
    let gaps = async || {
        invariants
            .look(&invariants.checks().remove(1))
            .await
            .unwrap();
        let report = invariants.report(10).await.unwrap();
        report.invariants[0].findings.len()
    };

    assert_eq!(gaps().await, 0);
    let ended = "update coordination.cron_runs set state = 'succeeded', finished_at = now() where token = 1";
    sqlx::query(ended).execute(&db).await.unwrap();
    assert_eq!(gaps().await, 1, "there is room for it");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_slot_whose_attempts_are_used_up_is_a_gap(db: PgPool) {
    let invariants = Invariants::new(db.clone(), "a".into());
    let dead = "insert into coordination.cron_runs (job, slot, token, instance, state, started_at, finished_at, attempt)
        values ('note', now(), 3, 'b', 'abandoned', now(), now(), 3)";
    sqlx::query(dead).execute(&db).await.unwrap();

    invariants
        .look(&invariants.checks().remove(1))
        .await
        .unwrap();

    assert_eq!(total(&invariants, "cron_slot_gaps").await, 1);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_body_that_ran_to_its_end_although_another_had_run_the_slot_is_a_duplicate(db: PgPool) {
    let stores = stores().await;
    let admin = cron(&stores, &db, "admin").jobs();
    let pool = db.clone();
    // While it runs another replica takes the run over and ends it, and this body does not ask.
    let job = Job::new("careless", NEVER, move |_| {
        let pool = pool.clone();
        async move {
            for other in [
                "update coordination.cron_runs
                    set token = token + 1, instance = 'b', state = 'succeeded', finished_at = now()",
                "insert into coordination.cron_attempts (job, slot, token, instance, finished_at, outcome, accepted)
                    select job, slot, token, instance, finished_at, state, true from coordination.cron_runs",
            ] {
                sqlx::query(other).execute(&pool).await?;
            }
            Ok(())
        }
    });
    let replica = vec![(cron(&stores, &db, "a"), vec![job])];
    while_running(replica, "its holder has told of it", async || {
        let _ = match admin.history("careless", 1).await.unwrap().first() {
            None => admin.trigger("careless").await.is_ok(),
            Some(_) => false,
        };
        let late: i64 = sqlx::query_scalar(
            "select count(*) from coordination.cron_attempts where not accepted",
        )
        .fetch_one(&db)
        .await
        .unwrap();
        late == 1
    })
    .await;

    let invariants = Invariants::new(db.clone(), "admin".into());
    invariants
        .look(&invariants.checks().remove(0))
        .await
        .unwrap();

    assert_eq!(total(&invariants, "cron_slot_duplicates").await, 1);
}

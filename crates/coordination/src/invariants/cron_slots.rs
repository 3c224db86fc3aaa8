//! The promise of cron, checked by other means than those that keep it: by what each holder says its body did, and by the
//! schedule laid over the history.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use sqlx::{FromRow, PgPool};

use super::Finding;
use crate::cron::{CatchUp, Overlap, Told};

/// A slot is not missed before it is late by this much, and a holder not gone before it was silent for as long.
const LATE: TimeDelta = TimeDelta::seconds(60);
/// A job that no replica has spoken of for this long is run by none, and misses nothing.
const UNHEARD: TimeDelta = TimeDelta::seconds(90);
/// Slots of a job that are laid over its history at a time. A minute has at most 60 new ones, so the checks of many
/// minutes see each.
const MOST_SLOTS: usize = 1000;

#[derive(FromRow)]
struct Twice {
    job: String,
    slot: DateTime<Utc>,
    times: i64,
    instances: Vec<String>,
}

/// Slots whose body came to a good end more than once, by the account each holder gave, whether it counted or not. A late
/// body that writes by its guard fails, and is not among them.
pub async fn duplicates(db: PgPool) -> anyhow::Result<Vec<Finding>> {
    let query = sqlx::query_as(
        "-- invariants::duplicates
        with since as (
            -- What was looked at once is not looked at again; an hour more, for ends that were told late.
            select coalesce(min(checked_at), '-infinity') - interval '1 hour' as at
            from coordination.invariant_checks where invariant = 'cron_slot_duplicates'
        )
        select job, slot, count(*) as times, array_agg(instance order by token) as instances
        from coordination.cron_attempts
        where outcome = 'succeeded' and (job, slot) in (
            select job, slot from since, coordination.cron_attempts
            where finished_at > since.at and outcome = 'succeeded'
        )
        group by job, slot having count(*) > 1 order by slot desc limit 1000",
    );
    let twice: Vec<Twice> = query.fetch_all(&db).await?;
    let found = twice.into_iter().map(|each| Finding {
        subject: format!("{} {}", each.job, each.slot.to_rfc3339()),
        detail: json!({ "job": each.job, "slot": each.slot, "times": each.times, "instances": each.instances }),
        certain: true,
    });
    Ok(found.collect())
}

#[derive(FromRow)]
struct Standing {
    #[sqlx(flatten)]
    told: Told,
    now: DateTime<Utc>,
    owes_since: DateTime<Utc>,
    last_slot: Option<DateTime<Utc>>,
    /// Runs whose holder was heard of lately.
    running: i64,
}

/// Slots that a policy owes and that came to nothing: nobody has begun them although the job is not paused, some replica
/// runs it and no other run is in the way; their attempts are used up; or their holder has gone and nobody takes over.
pub async fn gaps(db: PgPool) -> anyhow::Result<Vec<Finding>> {
    let query = sqlx::query_as(
        "-- invariants::standing
        select job, schedule, time_zone, catch_up, overlap, jitter_ms, timeout_ms, pause_after, failures,
            paused_at, pause_reason, seen_at, clock_timestamp() as now, owes_since,
            (select max(slot) from coordination.cron_runs r
                where r.job = j.job and not manual and slot <= clock_timestamp()) as last_slot,
            (select count(*) from coordination.cron_runs r where r.job = j.job and state = 'running'
                and alive_at > clock_timestamp() - make_interval(secs => $1)) as running
        from coordination.cron_jobs j
        where paused_at is null and seen_at > clock_timestamp() - make_interval(secs => $2) order by job",
    );
    let query = query.bind(LATE.as_seconds_f64());
    let jobs: Vec<Standing> = query.bind(UNHEARD.as_seconds_f64()).fetch_all(&db).await?;
    let mut found = come_to_nothing(&db).await?;
    for standing in jobs {
        found.extend(missing(&db, &standing).await?);
    }
    Ok(found)
}

#[derive(FromRow)]
struct Dead {
    job: String,
    slot: DateTime<Utc>,
    token: i64,
    state: String,
    error: Option<String>,
}

/// Runs whose attempts are used up, which is for sure; and runs of silent holders.
async fn come_to_nothing(db: &PgPool) -> anyhow::Result<Vec<Finding>> {
    let query = sqlx::query_as(
        "-- invariants::come_to_nothing
        with since as (
            select coalesce(min(checked_at), '-infinity') - interval '1 hour' as at
            from coordination.invariant_checks where invariant = 'cron_slot_gaps'
        )
        select job, slot, token, state, error from since, coordination.cron_runs
        where state = 'abandoned' and attempt >= $3 and not manual and finished_at > since.at
        union all
        select job, slot, token, state, error from coordination.cron_runs
        join coordination.cron_jobs using (job)
        where state = 'running' and alive_at <= clock_timestamp() - make_interval(secs => $1)
            and paused_at is null and seen_at > clock_timestamp() - make_interval(secs => $2)
        order by slot desc limit 1000",
    );
    let query = query
        .bind(LATE.as_seconds_f64())
        .bind(UNHEARD.as_seconds_f64())
        .bind(crate::cron::MOST_ATTEMPTS);
    let dead: Vec<Dead> = query.fetch_all(db).await?;
    let found = dead.into_iter().map(|each| {
        let (job, slot) = (&each.job, each.slot);
        let detail = json!({ "job": job, "slot": slot, "state": each.state, "error": each.error });
        let slot = slot.to_rfc3339();
        match each.state.as_str() {
            "abandoned" => Finding {
                subject: format!("{job} {slot} abandoned"),
                detail,
                certain: true,
            },
            _ => Finding {
                subject: format!("{job} {slot} silent since token {}", each.token),
                detail,
                certain: false,
            },
        }
    });
    Ok(found.collect())
}

/// The oldest slot that a job owes and nobody has begun. While a debt is worked off the latest slot that was begun is
/// another one at each look, and so it is not confirmed.
async fn missing(db: &PgPool, standing: &Standing) -> anyhow::Result<Option<Finding>> {
    let (told, now) = (&standing.told, standing.now);
    let (Some(schedule), Ok(policy), Ok(overlap)) = (
        told.schedule(),
        told.catch_up.parse(),
        told.overlap.parse::<Overlap>(),
    ) else {
        return Ok(None);
    };
    // Other runs are in the way.
    if standing.running >= overlap.most_at_once() {
        return Ok(None);
    }
    let job = &told.job;
    let is_owed = |slot: &DateTime<Utc>| schedule.due_at(*slot) > standing.owes_since;
    // The newest comes first.
    let slots: Vec<_> = match policy {
        CatchUp::None => return Ok(None),
        CatchUp::Last => {
            let late = schedule.latest_due(now - LATE).filter(is_owed);
            let unbegun = late.filter(|slot| standing.last_slot.is_none_or(|last| *slot > last));
            unbegun.into_iter().collect()
        }
        CatchUp::All(window) => {
            let jitter = TimeDelta::milliseconds(told.jitter_ms);
            let from = (standing.owes_since - jitter).max(now - window + LATE);
            let mut slots = schedule.between(from, now - LATE, MOST_SLOTS);
            let begun: Vec<DateTime<Utc>> = sqlx::query_scalar(
                "-- invariants::begun
                select slot from coordination.cron_runs where job = $1 and slot >= $2 and not manual",
            )
            .bind(job)
            .bind(slots.last())
            .fetch_all(db)
            .await?;
            let begun: HashSet<_> = begun.into_iter().collect();
            slots.retain(|slot| is_owed(slot) && !begun.contains(slot));
            slots
        }
    };
    let Some(slot) = slots.last() else {
        return Ok(None);
    };
    let subject = match standing.last_slot {
        Some(last) if last > *slot => format!("{job} {}", slot.to_rfc3339()),
        // The slot that is owed is another one soon; that none was begun since the last one stays.
        Some(last) => format!("{job} after {}", last.to_rfc3339()),
        None => format!("{job} after the beginning"),
    };
    Ok(Some(Finding {
        subject,
        detail: json!({
            "job": job, "slot": slot, "missing": slots.len(), "catchUp": told.catch_up, "lastSlot": standing.last_slot,
        }),
        certain: false,
    }))
}

//! The promise of cron, checked by other means than those that keep it.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use sqlx::{FromRow, PgPool};

use super::Finding;
use crate::cron::{CatchUp, Told};

/// A slot is not missed before it is late by this much.
const LATE: TimeDelta = TimeDelta::seconds(60);
/// A job that no replica has spoken of for this long is run by none, and misses nothing.
const UNHEARD: TimeDelta = TimeDelta::seconds(90);
/// Most slots of one job that are compared.
const MOST_SLOTS: usize = 1000;

#[derive(FromRow)]
struct Twice {
    job: String,
    slot: DateTime<Utc>,
    accepted: i64,
    rows: i64,
}

/// Slots of which more than one run was accepted as done, by the account each holder gave.
pub async fn duplicates(db: PgPool) -> anyhow::Result<Vec<Finding>> {
    let query = sqlx::query_as(
        "-- invariants::duplicates
        with since as (
            -- What was looked at once is not looked at again; an hour more, for ends that were told late.
            select coalesce(min(checked_at), '-infinity') - interval '1 hour' as at
            from coordination.invariant_checks where invariant = 'cron_slot_duplicates'
        ), accepted as (
            select job, slot from since, coordination.cron_attempts
            where finished_at > since.at and outcome = 'succeeded'
        )
        select job, slot, max(accepted) as accepted, max(rows) as rows from (
            select job, slot, count(*) as accepted, 1::bigint as rows from coordination.cron_attempts
            where outcome = 'succeeded' and (job, slot) in (select job, slot from accepted)
            group by job, slot having count(*) > 1
            union all
            select job, slot, 0, count(*) from since, coordination.cron_runs
            where scheduled_at > since.at group by job, slot having count(*) > 1
        ) twice group by job, slot order by slot desc limit 1000",
    );
    let twice: Vec<Twice> = query.fetch_all(&db).await?;
    let found = twice.into_iter().map(|each| Finding {
        subject: format!("{} {}", each.job, each.slot.to_rfc3339()),
        detail: json!({ "job": each.job, "slot": each.slot, "accepted": each.accepted, "rows": each.rows }),
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
    running: i64,
}

/// Slots that a policy owes and nobody has begun, although the job is not paused, some replica runs it, and no other
/// run is in the way.
pub async fn gaps(db: PgPool) -> anyhow::Result<Vec<Finding>> {
    let query = sqlx::query_as(
        "-- invariants::standing
        select job, schedule, time_zone, catch_up, overlap, jitter_ms, timeout_ms, pause_after, failures,
            paused_at, pause_reason, seen_at, clock_timestamp() as now, owes_since,
            (select max(slot) from coordination.cron_runs r
                where r.job = j.job and not manual and slot <= clock_timestamp()) as last_slot,
            (select count(*) from coordination.cron_runs r where r.job = j.job and state = 'running') as running
        from coordination.cron_jobs j where paused_at is null order by job",
    );
    let jobs: Vec<Standing> = query.fetch_all(&db).await?;
    let mut found = Vec::new();
    for standing in jobs {
        for slot in missing(&db, &standing).await? {
            let (job, policy) = (&standing.told.job, &standing.told.catch_up);
            found.push(Finding {
                subject: format!("{job} {}", slot.to_rfc3339()),
                detail: json!({ "job": job, "slot": slot, "catchUp": policy, "lastSlot": standing.last_slot }),
                certain: false,
            });
        }
    }
    Ok(found)
}

async fn missing(db: &PgPool, standing: &Standing) -> anyhow::Result<Vec<DateTime<Utc>>> {
    let (told, now) = (&standing.told, standing.now);
    let unheard = now - told.seen_at > UNHEARD;
    let in_the_way = standing.running > 0 && told.overlap != "allow";
    let (Some(schedule), Ok(policy)) = (told.schedule(), told.catch_up.parse()) else {
        return Ok(Vec::new());
    };
    if unheard || in_the_way {
        return Ok(Vec::new());
    }
    Ok(match policy {
        CatchUp::None => Vec::new(),
        CatchUp::Last => {
            let late = schedule.latest_due(now - LATE);
            let owed = late.filter(|slot| *slot > standing.owes_since);
            owed.filter(|slot| standing.last_slot.is_none_or(|last| *slot > last))
                .into_iter()
                .collect()
        }
        CatchUp::All(window) => {
            let from = standing.owes_since.max(now - window + LATE);
            let begun: Vec<DateTime<Utc>> = sqlx::query_scalar(
                "select slot from coordination.cron_runs where job = $1 and slot > $2",
            )
            .bind(&told.job)
            .bind(from)
            .fetch_all(db)
            .await?;
            let mut slots = schedule.between(from, now - LATE, MOST_SLOTS);
            slots.retain(|slot| !begun.contains(slot));
            slots
        }
    })
}

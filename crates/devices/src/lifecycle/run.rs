//! Beginning what is due, and carrying executions out: each step small, each repeatable.

use std::time::Duration;

use chrono::TimeDelta;
use contracts::{DeviceId, TaskId, Timestamp};
use platform::lifecycle::Tick;
use platform::problem::causes;
use serde_json::json;
use tokio::time::Instant;
use tracing::{info, warn};

use super::db::{self, Claimed, Wanted};
use super::view::LifecycleRule;
use super::{Autoscaling, Rule, effects, next_due};
use crate::batch::told;
use crate::device::create::{self, CreateDevice};
use crate::{Devices, Error, error::Result, metrics, template};

/// How many devices are read at a time.
const BATCH: i64 = 50;
/// How many rules one step begins.
const RULES: i64 = 20;
/// How long a replica may be silent before another one goes on. What it did meanwhile does not count.
const LEASE: TimeDelta = TimeDelta::seconds(60);
/// How long one step goes on with an execution before others have their turn.
const TURN: Duration = Duration::from_secs(10);
/// How long executions are remembered, and how many are forgotten at a time.
const REMEMBERED: TimeDelta = TimeDelta::days(90);
const FORGOTTEN: i64 = 500;
/// How often a device is tried with which the database fails.
const MOST_ATTEMPTS: i32 = 5;

/// How far an execution came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// It is over.
    Ended,
    /// Its turn is over, or another replica has it.
    Left,
}

/// Begins every rule that is due, and goes on with one execution.
pub async fn step(state: &Devices) -> anyhow::Result<Tick> {
    begin_due(state).await?;
    let claimed = {
        let mut conn = state.platform.db.acquire().await?;
        let now = state.platform.clock.shared(&mut conn).await?;
        db::claim(&mut conn, None, (now, leased(now))).await?
    };
    let Some(claimed) = claimed else {
        return Ok(Tick::Idle);
    };
    carry_out(state, &claimed, Instant::now() + TURN).await?;
    Ok(Tick::More)
}

/// Writes an execution for each rule that is due. Of due times that were missed while nobody looked one is made good.
async fn begin_due(state: &Devices) -> anyhow::Result<()> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    for rule in db::lock_due(&mut tx, now, RULES).await? {
        let next = next_due(&rule.schedule, &rule.time_zone, now.utc()).unwrap_or_default();
        let (id, slot) = (TaskId::new().to_string(), rule.next_execution_at);
        let next = next.map(Timestamp::from);
        if db::begin(&mut tx, (&rule, &id), slot, next, now).await? {
            info!("lifecycle rule {} is due: execution {id}", rule.name);
        }
        let before = now.utc() - REMEMBERED;
        db::forget(&mut tx, before.into(), FORGOTTEN).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Begins an execution of a rule because somebody asks for it, and carries it out as far as the time allows; its name, or that
/// of the one that is under way.
///
/// # Errors
/// Where a store does not answer; what was begun is gone on with by whichever replica.
pub async fn now(state: &Devices, rule: &LifecycleRule, until: Instant) -> Result<Option<String>> {
    let id = TaskId::new().to_string();
    let claimed = {
        let mut tx = state.platform.db.begin().await?;
        let Some(rule) = db::lock(&mut tx, &rule.id).await? else {
            return Ok(None);
        };
        let now = state.platform.clock.shared(&mut tx).await?;
        // The schedule goes on as it did, although that of a disabled rule is not shown.
        let next = next_due(&rule.schedule, &rule.time_zone, now.utc()).unwrap_or_default();
        let next = rule.next_execution_at.or(next.map(Timestamp::from));
        if !db::begin(&mut tx, (&rule, &id), None, next, now).await? {
            // Two of one rule would each do what both see to be done.
            let under_way = db::last(&mut tx, &rule.id).await?;
            tx.commit().await?;
            return Ok(under_way);
        }
        let claimed = db::claim(&mut tx, Some(&id), (now, leased(now))).await?;
        tx.commit().await?;
        claimed
    };
    if let Some(claimed) = claimed {
        carry_out(state, &claimed, until).await?;
    }
    Ok(Some(id))
}

/// Goes on with an execution until it is over or its turn is.
async fn carry_out(state: &Devices, claimed: &Claimed, until: Instant) -> Result<Course> {
    let rule = claimed.config.as_ref();
    let rule = rule.and_then(|config| Rule::read(claimed.kind, config).ok());
    let Some(rule) = rule else {
        end(state, claimed, false).await?;
        return Ok(Course::Ended);
    };
    let course = match &rule {
        Rule::Autoscaling(scaling) => fill(state, claimed, scaling, until).await?,
        rule => go_through(state, claimed, rule, until).await?,
    };
    match course {
        Course::Ended => end(state, claimed, true).await?,
        Course::Left => {
            let mut conn = state.platform.db.acquire().await?;
            let now = state.platform.clock.shared(&mut conn).await?;
            db::release(&mut conn, claimed, now).await?;
        }
    }
    state.operations_due.notify_one();
    Ok(course)
}

async fn end(state: &Devices, claimed: &Claimed, is_whole: bool) -> Result<()> {
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    if db::end(&mut conn, claimed, is_whole, now).await? {
        metrics::lifecycle_executed(claimed.kind, is_whole);
    }
    Ok(())
}

/// Does with each device that a rule is about what it says, in the order of their ids.
async fn go_through(
    state: &Devices,
    claimed: &Claimed,
    rule: &Rule,
    until: Instant,
) -> Result<Course> {
    let (mut behind, mut attempts) = (claimed.behind.clone(), claimed.attempts);
    loop {
        let devices = {
            let mut conn = state.platform.db.acquire().await?;
            let now = state.platform.clock.shared(&mut conn).await?;
            let about = (claimed.rule_id.as_str(), rule);
            effects::candidates(&mut conn, about, (&behind, BATCH), now).await?
        };
        let Some(last) = devices.last() else {
            return Ok(Course::Ended);
        };
        let next = last.to_string();
        for id in &devices {
            let is_last = attempts >= MOST_ATTEMPTS;
            if Instant::now() >= until || !one(state, claimed, rule, (id, is_last)).await? {
                return Ok(Course::Left);
            }
            attempts = 0;
        }
        behind = next;
    }
}

/// Does with one device what a rule says, and says so in the same transaction; `false` where the execution is another
/// replica's by now. What the device forbids is kept with its reason.
async fn one(
    state: &Devices,
    claimed: &Claimed,
    rule: &Rule,
    (id, is_last): (&DeviceId, bool),
) -> Result<bool> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    // First of all: it locks the execution until this is over.
    if !db::advance(&mut tx, claimed, id.as_str(), (0, None), leased(now)).await? {
        return Ok(false);
    }
    match effects::apply(state, &mut tx, (claimed, rule), id, now).await {
        Ok(done) => {
            let counted = (i32::from(done), None);
            db::advance(&mut tx, claimed, id.as_str(), counted, leased(now)).await?;
            tx.commit().await?;
        }
        // Nothing that the device forbids: whoever takes the execution next asks again, but not for ever.
        Err(error @ Error::Database(_)) if !is_last => return Err(error),
        Err(error) => {
            tx.rollback().await?;
            failed(state, claimed, (id.as_str(), Some(id)), &error).await?;
        }
    }
    Ok(true)
}

/// Makes devices until as many are ready as shall be.
async fn fill(
    state: &Devices,
    claimed: &Claimed,
    scaling: &Autoscaling,
    until: Instant,
) -> Result<Course> {
    let owner = &scaling.user_id;
    // What stands at the beginning is enough for the bound: each turn makes one device, or ends.
    for turn in 0..scaling.ready {
        if Instant::now() >= until {
            return Ok(Course::Left);
        }
        let (template, lease) = {
            let mut conn = state.platform.db.acquire().await?;
            let (ready, all) = db::pool(&mut conn, owner, &scaling.group_name).await?;
            if ready >= scaling.ready || all >= scaling.max {
                return Ok(Course::Ended);
            }
            let found = template::db::find(&mut conn, &scaling.template_id, Some(owner)).await?;
            // It is this replica's turn only as long as the execution is its own.
            let lease = leased(state.platform.clock.shared(&mut conn).await?);
            if !db::advance(&mut conn, claimed, "", (0, None), lease).await? {
                return Ok(Course::Left);
            }
            (found, lease)
        };
        let made = match template {
            Some(template) => {
                let body = CreateDevice {
                    name: template.name.clone(),
                    group_name: Some(scaling.group_name.clone()),
                    auto_start: Some(false),
                    ..template.device()
                };
                let wanted = Wanted {
                    claimed,
                    scaling,
                    until: lease,
                };
                create::for_rule(state, owner.clone(), body, wanted).await
            }
            None => Err(platform::Problem::not_found("template").into()),
        };
        match made {
            // Where it was not wanted any more, the next look tells why.
            Ok(()) | Err(Error::NotWanted) => {}
            Err(error @ Error::Database(_)) if turn > 0 || claimed.attempts < MOST_ATTEMPTS => {
                return Err(error);
            }
            Err(error) => {
                // What hinders one hinders the others.
                failed(state, claimed, ("", None), &error).await?;
                return Ok(Course::Ended);
            }
        }
    }
    Ok(Course::Ended)
}

async fn failed(
    state: &Devices,
    claimed: &Claimed,
    (behind, device): (&str, Option<&DeviceId>),
    error: &crate::Error,
) -> Result<()> {
    warn!(
        "execution {} of a lifecycle rule met a fault: {}",
        claimed.id,
        causes(error)
    );
    let mut told = json!({ "error": told(error).message() });
    if let Some(device) = device {
        told["deviceId"] = json!(device);
    }
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    db::advance(&mut conn, claimed, behind, (0, Some(&told)), leased(now)).await?;
    Ok(())
}

fn leased(now: Timestamp) -> Timestamp {
    (now.utc() + LEASE).into()
}

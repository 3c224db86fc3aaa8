//! `gateway reload`: a new process for each replica of this machine, one by one, without a request that fails.
//!
//! A successor is started first and its predecessor asked to leave when the successor is ready, so that there are never
//! fewer replicas than before. Whatever ends this command on any line, no request fails: at worst one replica is left
//! over, which serves like the others and is replaced by the next reload.
//!
//! A store that cannot be asked is asked again until the time is up: it is no reason to end what already serves.

mod health;
mod lineage;
mod process;
mod supervisor;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use coordination::{Keys, Lease, Leases, Registry};
use gateway::front::hostname;
use platform::{Env, db, redis};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::say;
use super::stores::addresses;
use crate::serve::Config;
use health::{Cluster, Look, Replica};
use process::Process;
use supervisor::Supervisor;

/// How often the cluster is looked at while something is waited for.
const POLL: Duration = Duration::from_millis(200);
/// The lease that keeps two reloads of a cluster apart, and how long it outlives one that was killed.
const LEASE: &str = "gateway-reload";
const LEASE_TTL: Duration = Duration::from_secs(15);
/// How long instances that say they are not ready may take to be so: a busy store makes them say it for a moment.
const RECOVERY: Duration = Duration::from_secs(20);
/// How much longer than its grace a successor that is not wanted may take to leave before it is killed.
const UNWANTED: Duration = Duration::from_secs(10);

/// How the replicas of this machine are replaced.
#[derive(Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of the command line"
)]
pub struct Reload {
    /// Says what would be done and whether it may be, and does nothing.
    #[arg(long)]
    dry_run: bool,
    /// One JSON document at the end instead of lines on the way.
    #[arg(long)]
    json: bool,
    /// How long a new replica may take until it is ready, and as long again an old one until it has left.
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// How many healthy instances each service must have, on all machines, without the replica that is asked to leave.
    /// Unless told, as many as it has at the start; with --signal-only one.
    #[arg(long, value_name = "COUNT")]
    min_healthy: Option<usize>,
    /// Only asks each replica to leave, and waits until a supervisor has started another one that is ready.
    #[arg(long)]
    signal_only: bool,
    /// Replaces processes although a supervisor seems to look after them, as where it only started this shell. Which
    /// one starts them again cannot always be told: with one that does, each reload would add replicas.
    #[arg(long, conflicts_with = "signal_only")]
    unsupervised: bool,
}

/// Replicas, their processes, and how many instances of each service must be well without the one that leaves.
type Judged = (Vec<Replica>, Vec<Process>, BTreeMap<String, usize>);

/// What became of a reload.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    dry_run: bool,
    /// What the successors run.
    program: PathBuf,
    version: &'static str,
    replaced: Vec<Replaced>,
    /// Processes that go on as they were.
    kept: Vec<u32>,
    /// Processes that would be replaced, where nothing is done.
    planned: Vec<u32>,
    /// Why it ended early.
    error: Option<String>,
    /// The last error of a successor that ended before it was ready, where it can be read.
    reason: Option<String>,
    /// The file that the errors of that successor went to.
    output: Option<PathBuf>,
}

/// A successor ended before it was ready.
#[derive(Debug, thiserror::Error)]
#[error("it ended ({status}) before it was ready{}{}: correct that and reload again",
    told(", and said: ", reason.as_ref()),
    told("; all it said is in ", output.as_ref().map(|path| path.display()).as_ref()))]
struct Ended {
    status: std::process::ExitStatus,
    reason: Option<String>,
    output: Option<PathBuf>,
}

fn told(before: &str, what: Option<&impl std::fmt::Display>) -> String {
    what.map(|what| format!("{before}{what}"))
        .unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Replaced {
    pid: u32,
    version: String,
    new_pid: u32,
    services: BTreeSet<String>,
    /// Until the successor was ready, and from then on until the old one had left.
    ready_seconds: f64,
    left_seconds: f64,
    /// What of their output is missing.
    losses: Vec<String>,
}

/// Replaces every replica of this machine; the exit code is 1 where one was kept.
pub async fn reload(env: Env, options: Reload) -> anyhow::Result<i32> {
    let settings = Config::from_env(env)?.settings;
    let stores = addresses(&settings)?;
    let redis = redis::connect(&stores.redis).await?.pool;
    let keys = Keys::new(&settings.key_prefix);
    let db = db::connect(&stores.database, (0, 1)).await?;
    let leases = Leases::new(redis.clone(), db, keys.clone());
    let Some(lease) = leases.acquire(LEASE, LEASE_TTL).await? else {
        bail!(
            "another reload of this cluster is under way: wait for its end (one that was killed is over after {} s)",
            LEASE_TTL.as_secs()
        );
    };
    let reloading = Reloading {
        cluster: Cluster::new(Registry::new(redis, keys))?,
        host: hostname(),
        program: std::env::current_exe().context("finding this program")?,
        timeout: Duration::from_secs(options.timeout),
        grace: settings.shutdown_grace,
        options,
        lease,
    };
    reloading.run().await
}

struct Reloading {
    cluster: Cluster,
    host: String,
    program: PathBuf,
    timeout: Duration,
    /// How long a replica may take to leave, by the settings that this command has.
    grace: Duration,
    options: Reload,
    lease: Lease,
}

impl Reloading {
    async fn run(self) -> anyhow::Result<i32> {
        let mut report = Report {
            dry_run: self.options.dry_run,
            program: self.program.clone(),
            version: env!("CARGO_PKG_VERSION"),
            ..Report::default()
        };
        let lost = self.lease.lost();
        let outcome = tokio::select! {
            outcome = self.replace_all(&mut report) => outcome,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
            () = lost.cancelled() => Err(anyhow::anyhow!(
                "Redis could not be reached for so long that another reload may have begun"
            )),
        };
        // It ends by itself where Redis does not answer.
        let _ = self.lease.release().await;
        let done = outcome.is_ok();
        if let Err(error) = outcome {
            if let Some(ended) = error.downcast_ref::<Ended>() {
                report.reason.clone_from(&ended.reason);
                report.output.clone_from(&ended.output);
            }
            report.error = Some(format!("{error:#}"));
        }
        if self.options.json {
            say(&serde_json::to_string_pretty(&report)?)?;
        } else if let Some(error) = report.error {
            let kept: Vec<_> = report.kept.iter().map(u32::to_string).collect();
            let kept = match kept.is_empty() {
                true => String::new(),
                false => format!(
                    "; replicas that go on as they were: pid {}",
                    kept.join(", ")
                ),
            };
            bail!("{error}{kept}");
        }
        Ok(i32::from(!done))
    }

    async fn replace_all(&self, report: &mut Report) -> anyhow::Result<()> {
        let replicas = self.cluster.look().await?.replicas_on(&self.host);
        if replicas.is_empty() {
            bail!(
                "no replica of the cluster runs on this machine, {}: `gateway status` shows where they are",
                self.host
            );
        }
        report.kept = replicas.iter().map(|replica| replica.pid).collect();
        // One that was killed a moment ago is in the registry for a while.
        let judged = self.settled(|look| self.judge(look)).await;
        if self.options.dry_run {
            return self.plan(report, judged.map(drop)).await;
        }
        let (replicas, processes, required) = judged?;
        report.kept = replicas.iter().map(|replica| replica.pid).collect();
        self.introduce(replicas.len(), report.version)?;
        let many = replicas.len();
        for (number, (replica, process)) in replicas.iter().zip(&processes).enumerate() {
            let step = Step {
                reloading: self,
                replica,
                process,
                required: &required,
                name: format!("{}/{many} pid {}", number + 1, replica.pid),
            };
            let replaced = match self.options.signal_only {
                true => step.signal().await,
                false => step.replace().await,
            };
            let replaced = replaced?;
            report.kept.retain(|pid| *pid != replaced.pid);
            report.replaced.push(replaced);
        }
        let done = count(report.replaced.len(), "replica");
        self.tell(&format!("replaced {done}"))
    }

    fn introduce(&self, replicas: usize, version: &str) -> anyhow::Result<()> {
        let (replicas, host) = (count(replicas, "replica"), &self.host);
        let program = self.program.display();
        self.tell(&format!(
            "{replicas} of {host} run here; each is replaced by {program} {version}"
        ))
    }

    /// Tells what would be done, and then what stands against it.
    async fn plan(&self, report: &mut Report, judged: anyhow::Result<()>) -> anyhow::Result<()> {
        let replicas = self.cluster.look().await?.replicas_on(&self.host);
        self.introduce(replicas.len(), report.version)?;
        let many = replicas.len();
        for (number, replica) in replicas.iter().enumerate() {
            let (number, pid) = (number + 1, replica.pid);
            let instances = replica.instances();
            self.tell(&format!(
                "{number}/{many} pid {pid}  would be replaced: {instances}"
            ))?;
            report.planned.push(pid);
        }
        self.tell("nothing was done")?;
        judged
    }

    /// The replicas of this machine and their processes, and how many of each service must be well, unless something stands
    /// against replacing them: then all that does.
    fn judge(&self, look: &Look) -> anyhow::Result<Judged> {
        let replicas = look.replicas_on(&self.host);
        let mut against = Vec::new();
        let mut processes = Vec::new();
        let mut supervised: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for replica in &replicas {
            match self.examine(replica) {
                Ok((process, None)) => processes.push(process),
                Ok((_, Some(supervisor))) => {
                    let alike = supervised.entry(supervisor.advice()).or_default();
                    alike.push(replica.pid);
                }
                Err(error) => against.push(format!("{error:#}")),
            }
        }
        for (advice, pids) in supervised {
            let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
            against.push(format!(
                "say --unsupervised if nothing starts pid {} again when it ends, for it seems to be {advice}; or --signal-only, \
                 which asks one replica after the other to leave and waits for the one that is started instead",
                pids.join(" or ")
            ));
        }
        let services = replicas.iter().flat_map(Replica::services).collect();
        let required = self.required(look, &services);
        if let Err(error) = &required {
            against.push(format!("{error:#}"));
        }
        match required {
            Ok(required) if against.is_empty() => Ok((replicas, processes, required)),
            _ => bail!("{}", against.join("; and ")),
        }
    }

    /// The process of a replica, and who looks after it where that stands against replacing it.
    fn examine(&self, replica: &Replica) -> anyhow::Result<(Process, Option<Supervisor>)> {
        let process = Process::of(replica.pid, replica.address()?)?;
        if self.options.signal_only {
            return Ok((process, None));
        }
        process.may_be_started_again()?;
        let supervisor = match self.options.unsupervised {
            true => None,
            false => Supervisor::of(&process),
        };
        Ok((process, supervisor))
    }

    /// How many instances of each service must be well without the replica that leaves. Refuses where there are too
    /// few from the start.
    fn required(
        &self,
        look: &Look,
        services: &BTreeSet<String>,
    ) -> anyhow::Result<BTreeMap<String, usize>> {
        let ailing = look.ailing(services);
        if self.options.min_healthy.is_none() && !ailing.is_empty() {
            bail!(
                "not every instance is well: {}; wait, or end what does not recover, or say by --min-healthy how many \
                 of each service are enough",
                ailing.join("; ")
            );
        }
        let usual = |service: &str| match self.options.signal_only {
            true => 1,
            false => look.healthy(service, None),
        };
        let required = services.iter().map(|service| {
            let least = self.options.min_healthy.unwrap_or_else(|| usual(service));
            (service.clone(), least)
        });
        let required: BTreeMap<String, usize> = required.collect();
        for (service, least) in &required {
            // A successor comes first, unless a supervisor starts it afterwards.
            let leaving = usize::from(self.options.signal_only);
            let healthy = look.healthy(service, None).saturating_sub(leaving);
            if healthy < *least {
                bail!(
                    "{service} would have {healthy} healthy instances while one is replaced, and needs {least}: start \
                     another replica first, or allow fewer by --min-healthy"
                );
            }
        }
        Ok(required)
    }

    /// Judges the cluster, again for a while where the judgement is bad and someone is not well.
    async fn settled<T>(&self, judge: impl Fn(&Look) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let until = Instant::now() + RECOVERY.min(self.timeout);
        loop {
            let (judged, is_well) = match self.cluster.look().await {
                Ok(look) => (judge(&look), look.is_well()),
                Err(error) => (Err(error), false),
            };
            if judged.is_ok() || is_well || Instant::now() > until {
                return judged;
            }
            sleep(POLL).await;
        }
    }

    fn tell(&self, line: &str) -> anyhow::Result<()> {
        match self.options.json {
            true => Ok(()),
            false => say(line),
        }
    }
}

/// The replacement of one replica.
struct Step<'a> {
    reloading: &'a Reloading,
    replica: &'a Replica,
    process: &'a Process,
    required: &'a BTreeMap<String, usize>,
    name: String,
}

impl Step<'_> {
    async fn replace(&self) -> anyhow::Result<Replaced> {
        let began = Instant::now();
        let (mut output, mut errors) = (self.process.output(1)?, self.process.output(2)?);
        let losses: BTreeSet<String> = [&mut output, &mut errors]
            .into_iter()
            .filter_map(|output| output.loss.take())
            .collect();
        for loss in &losses {
            self.tell(loss)?;
        }
        let mut goes = format!("its output goes to {}", output.name);
        if errors.name != output.name {
            goes += &format!(", its errors to {}", errors.name);
        }
        let file = errors.file.clone();
        let program: &Path = &self.reloading.program;
        let child = self.process.start_again(program, output, errors)?;
        let mut successor = Successor {
            child: Some(child),
            grace: self.grace(),
            errors: file,
        };
        let new_pid = successor.pid();
        self.tell(&format!("starts its successor, pid {new_pid}; {goes}"))?;
        self.await_successor(&mut successor)
            .await
            .with_context(|| {
                format!("the successor of pid {} was ended again", self.replica.pid)
            })?;
        let ready = began.elapsed();
        // From here on it is wanted, whatever becomes of its predecessor.
        successor.keep();
        self.may_leave().await.with_context(|| {
            format!(
                "pid {} stays, and so does its successor, pid {new_pid}; when the cluster is well, reload again",
                self.replica.pid
            )
        })?;
        self.tell(&format!(
            "pid {new_pid} is ready after {:.1} s, asks its predecessor to leave",
            ready.as_secs_f64()
        ))?;
        let left = self.leave().await?;
        Ok(Replaced {
            losses: losses.into_iter().collect(),
            ..self.replaced(new_pid, ready, left)
        })
    }

    /// How long its successor may take to leave, where that is not in a file which this command does not read.
    fn grace(&self) -> Duration {
        let told = self.process.variable("SHUTDOWN_GRACE_SECONDS");
        let told = told.and_then(|told| told.to_str()?.trim().parse().ok());
        let told = told.map(Duration::from_secs).unwrap_or_default();
        self.reloading.grace.max(told)
    }

    /// Asks the replica to leave, and waits for what a supervisor starts instead.
    async fn signal(&self) -> anyhow::Result<Replaced> {
        self.may_leave()
            .await
            .with_context(|| format!("pid {} stays", self.replica.pid))?;
        let before = self.reloading.cluster.look().await?;
        let known: BTreeSet<String> = before
            .replicas_on(&self.reloading.host)
            .into_iter()
            .map(|replica| replica.id)
            .collect();
        self.tell("is asked to leave")?;
        let left = self.leave().await?;
        let (began, services) = (Instant::now(), self.replica.services());
        loop {
            let look = self.reloading.cluster.look().await;
            let new = look.as_ref().ok().and_then(|look| {
                let mut replicas = look.replicas_on(&self.reloading.host).into_iter();
                replicas.find(|new| !known.contains(&new.id) && look.is_ready(new, &services))
            });
            if let Some(Replica { pid: new_pid, .. }) = new {
                self.tell(&format!("pid {new_pid} was started instead and is ready"))?;
                return Ok(self.replaced(new_pid, began.elapsed(), left));
            }
            if began.elapsed() > self.reloading.timeout {
                bail!(
                    "pid {} has left, and no replica with the same services was ready on this machine {} s later: see \
                     what its supervisor says, and start one{}",
                    self.replica.pid,
                    self.reloading.timeout.as_secs(),
                    unknown(look.err())
                );
            }
            sleep(POLL).await;
        }
    }

    fn replaced(&self, new_pid: u32, ready: Duration, left: Duration) -> Replaced {
        Replaced {
            pid: self.replica.pid,
            version: self.replica.version.clone(),
            new_pid,
            services: self.replica.services(),
            ready_seconds: ready.as_secs_f64(),
            left_seconds: left.as_secs_f64(),
            losses: Vec::new(),
        }
    }

    /// Waits until the successor serves what its predecessor does.
    async fn await_successor(&self, successor: &mut Successor) -> anyhow::Result<()> {
        let (began, services) = (Instant::now(), self.replica.services());
        loop {
            if let Some(ended) = successor.ended()? {
                bail!(successor.said(ended));
            }
            let (host, pid) = (&self.reloading.host, successor.pid());
            let look = self.reloading.cluster.look_for(host, pid).await;
            if let Ok(look) = &look {
                let replicas = look.replicas_on(host);
                if replicas.iter().any(|one| look.is_ready(one, &services)) {
                    return Ok(());
                }
            }
            if began.elapsed() > self.reloading.timeout {
                bail!(
                    "it was not ready after {} s: see its output, or give it longer by --timeout{}",
                    self.reloading.timeout.as_secs(),
                    unknown(look.err())
                );
            }
            sleep(POLL).await;
        }
    }

    /// Whether enough others are well.
    async fn may_leave(&self) -> anyhow::Result<()> {
        self.reloading.settled(|look| self.enough(look)).await
    }

    fn enough(&self, look: &Look) -> anyhow::Result<()> {
        for service in self.replica.services() {
            let healthy = look.healthy(&service, Some(self.replica));
            let least = self.required.get(&service).copied().unwrap_or_default();
            if healthy < least {
                let ailing = look.ailing(&BTreeSet::from([service.clone()]));
                bail!(
                    "only {healthy} of {service} are healthy without it, and {least} have to be{}{}",
                    if ailing.is_empty() { "" } else { ": " },
                    ailing.join("; ")
                );
            }
        }
        Ok(())
    }

    /// Asks the replica to leave, and waits until it has.
    async fn leave(&self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        self.process.ask_to_leave()?;
        while self.process.is_there() {
            if began.elapsed() > self.reloading.timeout {
                let instead = match self.reloading.options.signal_only {
                    true => "see what it says",
                    false => "its successor serves",
                };
                bail!(
                    "pid {} was asked to leave and still runs {} s later; {instead}",
                    self.replica.pid,
                    self.reloading.timeout.as_secs()
                );
            }
            sleep(POLL).await;
        }
        self.tell(&format!(
            "has left after {:.1} s",
            began.elapsed().as_secs_f64()
        ))?;
        Ok(began.elapsed())
    }

    fn tell(&self, line: &str) -> anyhow::Result<()> {
        self.reloading.tell(&format!("{}  {line}", self.name))
    }
}

/// What is to be said where the last look failed.
fn unknown(error: Option<anyhow::Error>) -> String {
    let said = error.map(|error| format!(" (the cluster could not be looked at: {error:#})"));
    said.unwrap_or_default()
}

/// A process that ends with this value, until it is kept.
struct Successor {
    child: Option<Child>,
    /// How long it may take to finish what it already serves.
    grace: Duration,
    /// The file of its errors, and how long that was before.
    errors: Option<(PathBuf, u64)>,
}

impl Successor {
    fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    fn ended(&mut self) -> std::io::Result<Option<std::process::ExitStatus>> {
        match &mut self.child {
            Some(child) => child.try_wait(),
            None => Ok(None),
        }
    }

    /// What is known of one that has ended.
    fn said(&self, status: std::process::ExitStatus) -> Ended {
        let errors = self.errors.as_ref();
        Ended {
            status,
            reason: errors.and_then(|(path, since)| words::last_error(path, *since)),
            output: errors.map(|(path, _)| path.clone()),
        }
    }

    fn keep(mut self) {
        self.child = None;
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, kill};
        let Some(child) = &mut self.child else {
            return;
        };
        let began = std::time::Instant::now();
        // It is not waited for yet, so the number is still its own.
        let _ = kill(
            nix::unistd::Pid::from_raw(child.id().cast_signed()),
            Signal::SIGTERM,
        );
        while matches!(child.try_wait(), Ok(None)) {
            if began.elapsed() > self.grace + UNWANTED {
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn count(many: usize, what: &str) -> String {
    format!("{many} {what}{}", if many == 1 { "" } else { "s" })
}

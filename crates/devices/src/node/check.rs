//! What a node needs so that devices do well on it, and what it has: the known walls of hosts of Android containers.

use std::fs;
use std::path::Path;

use axum::extract::State;
use bollard::models::{SystemInfo, SystemInfoCgroupVersionEnum};
use platform::Admin;
use platform::http::{Json, Path as Segment};
use serde::Serialize;
use sqlx::PgPool;

use super::{Node, db};
use crate::runtime;
use crate::runtime::docker::Identity;
use crate::runtime::engines::{Engine, engine};
use crate::runtime::recipe::Recipe;
use crate::{Config, Devices, Error, error::Result};

/// How something that a node needs stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It is there.
    Ok,
    /// It cannot be seen from here.
    Unknown,
    /// It is short.
    Warn,
    /// Without it devices fail.
    Fail,
}

impl Standing {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that a node needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it stands.
    pub status: Standing,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// All that a node needs.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Report {
    /// The node.
    pub node: String,
    /// How the worst of it stands.
    pub status: Standing,
    /// Each thing.
    pub checks: Vec<Check>,
}

impl Check {
    /// What was found, and what to do where it is not well.
    pub fn new(
        name: &'static str,
        status: Standing,
        found: impl Into<String>,
        advice: &str,
    ) -> Self {
        Self {
            name,
            status,
            found: found.into(),
            advice: (status != Standing::Ok && !advice.is_empty()).then(|| advice.to_owned()),
        }
    }
}

/// Checks a node: what its engine says, and, where that is on this machine, what the kernel says.
#[utoipa::path(get, path = "/nodes/{id}/check", tag = "nodes", params(("id" = String, Path, description = "The name of the node")), responses((status = 200, body = Report), (status = 403), (status = 404)))]
pub async fn check_node(
    State(state): State<Devices>,
    _: Admin,
    Segment(name): Segment<String>,
) -> Result<Json<Report>> {
    let node = {
        let mut conn = state.platform.db.acquire().await?;
        db::find(&mut conn, &name).await?
    };
    let node = node.ok_or(Error::NoSuchNode { node: name })?;
    state.runtimes.engines.know(&node);
    let engine = match node.runtime.has_engine() {
        true => Some(state.runtimes.engines.of(&node.name)?),
        false => None,
    };
    Ok(Json(report(&node, engine.as_deref()).await))
}

/// The reports on all nodes, or on one, seen from this machine; a replica need not run here.
///
/// # Errors
/// Where the nodes cannot be read.
pub async fn check_nodes(
    db: &PgPool,
    config: &Config,
    name: Option<&str>,
) -> sqlx::Result<Vec<Report>> {
    let nodes = super::db::all(&mut *db.acquire().await?).await?;
    let recipe = Recipe::new(&runtime::cluster(db).await?, config);
    let mut reports = Vec::new();
    for node in nodes
        .iter()
        .filter(|node| name.is_none_or(|name| node.name == name))
    {
        let identity = Identity::Told(node.engine_id.clone());
        reports.push(report(node, engine(node, identity, &recipe).as_deref()).await);
    }
    Ok(reports)
}

/// The report on a node.
pub async fn report(node: &Node, engine: Option<&dyn Engine>) -> Report {
    let mut checks = Vec::new();
    if let Some(engine) = engine {
        match engine.check(node).await {
            Ok(found) => checks = found,
            Err(error) => checks.push(Check::new(
                "engine",
                Standing::Fail,
                platform::problem::causes(&error),
                "start the engine, and let replicas reach it",
            )),
        }
    } else {
        checks.push(Check::new(
            "engine",
            Standing::Ok,
            "none is needed: devices of this node are simulated",
            "",
        ));
    }
    let worst = checks.iter().map(|check| check.status).max();
    Report {
        node: node.name.clone(),
        status: worst.unwrap_or(Standing::Ok),
        checks,
    }
}

/// What the engine says of itself and, where it is on this machine, what the kernel says.
pub fn of_engine(node: &Node, info: &SystemInfo, android: bool) -> Vec<Check> {
    let mut checks = engine_checks(node, info);
    checks.extend(match node.may_be_here() {
        true => local_checks(info, android),
        false => vec![Check::new(
            "kernel",
            Standing::Unknown,
            "the engine is on another machine",
            "run `gateway nodes check` there, with the engine's unix:// socket as its endpoint",
        )],
    });
    checks
}

fn engine_checks(node: &Node, info: &SystemInfo) -> Vec<Check> {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".into());
    let is = |right: bool, otherwise: Standing| if right { Standing::Ok } else { otherwise };
    let cgroup = info.cgroup_version == Some(SystemInfoCgroupVersionEnum::_2);
    let limits = info.memory_limit == Some(true) && info.cpu_cfs_quota == Some(true);
    let memory = info.mem_total.unwrap_or(0) / (1024 * 1024);
    let cores = info.ncpu.unwrap_or(0);
    let within = |limit: Option<i64>, there: i64| match limit {
        Some(limit) => is(limit <= there, Standing::Warn),
        None => Standing::Warn,
    };
    let promised_memory = node.memory_mb.map(i64::from);
    let cores_told = node.cpu_millis.map(|millis| i64::from(millis) / 1000);
    vec![
        Check::new(
            "engine",
            Standing::Ok,
            format!(
                "{} on Linux {}",
                text(&info.server_version),
                text(&info.kernel_version)
            ),
            "",
        ),
        Check::new(
            "cgroups",
            is(cgroup, Standing::Warn),
            if cgroup { "version 2" } else { "version 1" },
            "boot with systemd.unified_cgroup_hierarchy=1",
        ),
        Check::new(
            "limits",
            is(limits, Standing::Fail),
            if limits {
                "the engine can limit CPU and memory"
            } else {
                "the engine cannot limit CPU or memory"
            },
            "enable the cgroup controllers cpu and memory",
        ),
        Check::new(
            "memory",
            within(promised_memory, memory),
            format!(
                "{memory} MB, of which {} for devices",
                promised_memory.map_or_else(|| "all".into(), |limit| format!("{limit} MB"))
            ),
            "set memoryMB of the node to what its devices may have",
        ),
        Check::new(
            "cores",
            within(cores_told, cores),
            format!(
                "{cores}, of which {} for devices",
                cores_told.map_or_else(|| "all".into(), |limit| limit.to_string())
            ),
            "set cpuCores of the node, and cpuOvercommit to how many times as many are promised",
        ),
    ]
}

fn local_checks(info: &SystemInfo, android: bool) -> Vec<Check> {
    let mut checks = vec![binder(android)];
    for (name, file, least, advice) in [
        (
            "inotify instances",
            "/proc/sys/fs/inotify/max_user_instances",
            8_192,
            "sysctl -w fs.inotify.max_user_instances=8192",
        ),
        (
            "inotify watches",
            "/proc/sys/fs/inotify/max_user_watches",
            524_288,
            "sysctl -w fs.inotify.max_user_watches=1048576",
        ),
        (
            "open files",
            "/proc/sys/fs/file-max",
            1_000_000,
            "sysctl -w fs.file-max=2097152",
        ),
        (
            "open files of a process",
            "/proc/sys/fs/nr_open",
            1_048_576,
            "sysctl -w fs.nr_open=1048576",
        ),
    ] {
        checks.push(number(name, Path::new(file), least, advice));
    }
    if let Some(root) = &info.docker_root_dir {
        checks.push(disk(Path::new(root)));
    }
    checks
}

fn binder(android: bool) -> Check {
    let places = ["/dev/binderfs", "/dev/binder"];
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let found = places.into_iter().find(|place| Path::new(place).exists());
    let missing = if android {
        Standing::Fail
    } else {
        Standing::Warn
    };
    let advice =
        "modprobe binder_linux devices=binder,hwbinder,vndbinder, or a kernel with binderfs";
    match found {
        Some(place) => Check::new("binder", Standing::Ok, place, ""),
        None if known.contains("binder") => {
            Check::new("binder", Standing::Ok, "the kernel has binderfs", "")
        }
        None => Check::new("binder", missing, "the kernel has none", advice),
    }
}

fn number(name: &'static str, file: &Path, least: u64, advice: &str) -> Check {
    let found = fs::read_to_string(file).ok();
    let found = found.and_then(|text| text.trim().parse::<u64>().ok());
    match found {
        Some(found) if found >= least => Check::new(name, Standing::Ok, found.to_string(), ""),
        Some(found) => Check::new(
            name,
            Standing::Warn,
            format!("{found}, {least} are wanted"),
            advice,
        ),
        None => Check::new(name, Standing::Unknown, "cannot be read", advice),
    }
}

fn disk(root: &Path) -> Check {
    const WANTED: u64 = 20;
    let name = "disk";
    let advice = "give the data root of the engine more room, or remove images";
    match nix::sys::statvfs::statvfs(root) {
        Ok(stat) => {
            let free = stat.blocks_available() * stat.fragment_size() / (1 << 30);
            let standing = match free {
                0..2 => Standing::Fail,
                2..WANTED => Standing::Warn,
                _ => Standing::Ok,
            };
            let found = format!("{free} GB free at {}", root.display());
            Check::new(name, standing, found, advice)
        }
        Err(error) => Check::new(
            name,
            Standing::Unknown,
            format!("{}: {error}", root.display()),
            "",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_is_told_with_what_to_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, status) in [
            ("128\n", Standing::Warn),
            ("8192\n", Standing::Ok),
            ("many", Standing::Unknown),
        ] {
            fs::write(file.path(), text).unwrap();
            let check = number("inotify", file.path(), 8_192, "sysctl");
            assert_eq!(check.status, status, "{text}");
            assert_eq!(check.advice.is_none(), status == Standing::Ok, "{text}");
        }
        assert!(Standing::Fail > Standing::Warn && Standing::Warn > Standing::Unknown);
    }
}

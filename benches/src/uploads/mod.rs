//! Uploads: packages through a gateway replica, beside `cp` and nginx's `WebDAV` `PUT` to the same disk, and what memory they take.

mod nginx;
mod ours;
mod package;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use futures::future::try_join_all;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, interval};

use crate::process::Process;
use crate::report::Figure;
use crate::stores::Private;
use nginx::Nginx;
use ours::Replica;
use package::Package;

/// How uploads are measured.
pub struct Plan {
    /// How often each has its turn.
    pub rounds: u32,
    /// Of how many mebibytes a package is.
    pub mebibytes: u32,
    /// The numbers of packages at once.
    pub at_once: Vec<usize>,
    /// On which disk everything is written; that of temporary files where it is not said.
    pub folder: Option<PathBuf>,
}

const COPY: &str = "cp";
const NGINX: &str = "nginx, WebDAV PUT";
const OURS: &str = "ours, POST /apps/upload";
/// How often the memory of a server is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What a turn has shown.
struct Turn {
    taken: Duration,
    /// The most memory of the server meanwhile, in mebibytes.
    resident: f64,
}

/// Measures everybody in turn.
pub async fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let folder = match &plan.folder {
        Some(folder) => TempDir::with_prefix_in("bench-", folder)?,
        None => TempDir::with_prefix("bench-")?,
    };
    let stores = Private::start().await?;
    let nginx = Nginx::start(folder.path()).await?;
    let replica = Replica::start(&stores, folder.path()).await?;
    let mut figures = Vec::new();
    for at_once in &plan.at_once {
        figures.extend(measure(plan, *at_once, folder.path(), (&nginx, &replica)).await?);
    }
    replica.end().await?;
    nginx.end().await?;
    stores.end().await?;
    Ok(figures)
}

async fn measure(
    plan: &Plan,
    at_once: usize,
    folder: &Path,
    (nginx, replica): (&Nginx, &Replica),
) -> anyhow::Result<Vec<Figure>> {
    let mut packages = Vec::with_capacity(at_once);
    for number in 0..at_once {
        let path = folder.join(format!("package-{number}.apk"));
        packages.push(Package::write(&path, plan.mebibytes).await?);
    }
    let total = packages.iter().map(|package| package.size).sum::<u64>() as f64 / 1048576.0;
    let mut rates = [COPY, NGINX, OURS].map(|rival| (rival, Vec::new()));
    let mut memory = [NGINX, OURS].map(|rival| (rival, Vec::new()));
    for round in 0..=plan.rounds {
        for (number, package) in packages.iter().enumerate() {
            let turn = u64::from(round) * 1000 + u64::try_from(number)?;
            package.change(turn).await?;
        }
        let copied = copy(folder, &packages).await?;
        let put = nginx.put(&packages).await?;
        let uploaded = replica.upload(&packages).await?;
        // The first round warms everybody up.
        if round == 0 {
            continue;
        }
        let taken = [copied, put.taken, uploaded.taken];
        for ((_, values), taken) in rates.iter_mut().zip(taken) {
            values.push(total / taken.as_secs_f64());
        }
        for ((_, values), turn) in memory.iter_mut().zip([put, uploaded]) {
            values.push(turn.resident);
        }
    }
    let condition = format!("{at_once} at once, {} MiB each", plan.mebibytes);
    let figures = |unit| {
        let condition = condition.clone();
        move |(rival, values)| Figure {
            condition: condition.clone(),
            rival,
            unit,
            values,
        }
    };
    let rates = rates.into_iter().map(figures("MiB/s"));
    let memory = memory.into_iter().map(figures("MiB resident"));
    Ok(rates.chain(memory).collect())
}

/// Copies packages by `cp`.
async fn copy(folder: &Path, packages: &[Package]) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let copies = packages
        .iter()
        .enumerate()
        .map(|(number, package)| async move {
            let copy = folder.join(format!("copy-{number}"));
            let done = Command::new("cp")
                .args(["--reflink=never".as_ref(), package.path.as_os_str()])
                .arg(&copy)
                .status()
                .await?;
            ensure!(done.success(), "cp ended with {done}");
            Ok(copy)
        });
    let copies = try_join_all(copies).await?;
    let taken = began.elapsed();
    for copy in copies {
        tokio::fs::remove_file(copy).await?;
    }
    Ok(taken)
}

/// Times a piece of work, and watches the memory of the server that does it.
async fn watched<T>(
    process: &Process,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(T, Turn)> {
    let (began, mut looks) = (Instant::now(), interval(LOOK));
    let mut resident = 0.0_f64;
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => {
                let taken = began.elapsed();
                return Ok((done?, Turn { taken, resident }));
            }
            _ = looks.tick() => resident = resident.max(process.resident_mebibytes()?),
        }
    }
}

//! The load: `wrk` for as much as a proxy carries, `h2load` (HTTP/1.1) for a given rate.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use super::rivals::Rival;

/// How much longer than asked a generator may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The largest reply that is read here.
const LONGEST: u64 = 64 * 1024;

/// One turn of load.
pub struct Load<'a> {
    pub connections: u32,
    pub turn: Duration,
    pub cores: &'a str,
}

/// What `wrk` counted.
pub struct Done {
    pub requests: u64,
    pub failed: u64,
    pub per_second: f64,
}

/// How long each request took.
pub struct Latencies(Vec<u64>);

impl Latencies {
    /// In milliseconds.
    pub fn quantile_ms(&self, at: f64) -> f64 {
        let last = self.0.len() - 1;
        self.0[(last as f64 * at).round() as usize] as f64 / 1000.0
    }
}

impl Load<'_> {
    /// Closed loop: each connection sends its next request when the reply is there.
    pub async fn as_fast_as_possible(&self, rival: &Rival) -> anyhow::Result<Done> {
        let mut arguments = vec![
            "-t1".to_owned(),
            format!("-c{}", self.connections),
            format!("-d{}s", self.turn.as_secs()),
        ];
        for header in &rival.headers {
            arguments.extend(["-H".to_owned(), header.clone()]);
        }
        arguments.push(rival.url());
        let text = self.output("wrk", &arguments).await?;
        let number = |before: &str| -> Option<f64> {
            let line = text.lines().find(|line| line.contains(before))?;
            let number = line.split(before).nth(1)?.trim();
            number.split([' ', ',']).next()?.parse().ok()
        };
        let requests = text
            .lines()
            .find_map(|line| line.trim().split_once(" requests in "))
            .and_then(|(count, _)| count.parse().ok());
        let refused = number("Non-2xx or 3xx responses:").unwrap_or(0.0);
        let broken: f64 = ["connect ", "read ", "write ", "timeout "]
            .into_iter()
            .filter_map(|kind| {
                let errors = text.lines().find(|line| line.contains("Socket errors"))?;
                let number = errors.split(kind).nth(1)?.split(',').next()?;
                number.trim().parse::<f64>().ok()
            })
            .sum();
        Ok(Done {
            requests: requests.with_context(|| format!("wrk printed no count: {text}"))?,
            failed: (refused + broken) as u64,
            per_second: number("Requests/sec:")
                .with_context(|| format!("wrk printed no rate: {text}"))?,
        })
    }

    /// Open loop: requests leave at their time, whatever became of those before.
    pub async fn at_rate(&self, rival: &Rival, per_second: f64) -> anyhow::Result<Latencies> {
        let log: PathBuf = rival.folder.join("latencies.log");
        let _ = std::fs::remove_file(&log);
        let each = (per_second / f64::from(self.connections)).max(1.0).round();
        let mut arguments = vec![
            "--h1".to_owned(),
            "-t1".to_owned(),
            format!("-c{}", self.connections),
            format!("-D{}", self.turn.as_secs()),
            format!("--rps={each}"),
            format!("--log-file={}", log.display()),
        ];
        for header in &rival.headers {
            arguments.extend(["-H".to_owned(), header.clone()]);
        }
        arguments.push(rival.url());
        self.output("h2load", &arguments).await?;
        let text = std::fs::read_to_string(&log).context("h2load wrote no log")?;
        // When it began in µs, the status, how long it took in µs.
        let mut latencies = Vec::new();
        for line in text.lines() {
            let mut fields = line.split('\t').skip(1);
            let status = fields.next().unwrap_or_default();
            ensure!(
                status == "200",
                "{} answered {status} at a given rate",
                rival.kind.name
            );
            latencies.extend(fields.next().and_then(|time| time.parse::<u64>().ok()));
        }
        ensure!(!latencies.is_empty(), "h2load logged no request");
        latencies.sort_unstable();
        Ok(Latencies(latencies))
    }

    async fn output(&self, program: &str, arguments: &[String]) -> anyhow::Result<String> {
        let mut command = Command::new("taskset");
        command
            .args(["-c", self.cores, program])
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let done = timeout(self.turn + PATIENCE, command.output())
            .await
            .with_context(|| format!("{program} took too long"))??;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(
            done.status.success(),
            "{program} failed (is it installed?): {text}{}",
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(text)
    }
}

/// The whole reply to one request, head and body.
pub async fn ask(
    port: u16,
    method: &str,
    path: &str,
    headers: &[String],
    body: &str,
) -> anyhow::Result<String> {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let headers: String = headers
            .iter()
            .map(|header| format!("{header}\r\n"))
            .collect();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut reply = Vec::new();
        stream.take(LONGEST).read_to_end(&mut reply).await?;
        anyhow::Ok(String::from_utf8_lossy(&reply).into_owned())
    };
    timeout(Duration::from_secs(10), asked).await?
}

/// The first line of the reply to a GET.
pub async fn status(port: u16, path: &str, headers: &[String]) -> anyhow::Result<String> {
    let reply = ask(port, "GET", path, headers, "").await?;
    Ok(reply.lines().next().unwrap_or_default().to_owned())
}

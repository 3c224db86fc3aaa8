//! The proxies: nginx, haproxy, Express under PM2, and ours.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use coordination::{Announcement, Keys, Membership, Registry};

use super::{answers, free_port, wrk};
use crate::peers;
use crate::process::Process;
use crate::stores::Private;

/// What is asked for.
const PATH: &str = "/api/devices/device-1";

/// What signs the tokens of the gateway in Node; nothing but the benchmark knows it.
const EXPRESS_SECRET: &str = "a secret of thirty-two bytes or so";

/// A kind of proxy.
#[derive(Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    what: What,
    /// Whether it carries half of what nginx does, and can be measured at that rate.
    pub carries_half: bool,
}

#[derive(Clone, Copy)]
enum What {
    Nginx,
    Haproxy,
    /// With everything that a gateway has switched on, or as a proxy alone.
    Ours {
        whole: bool,
    },
    Express {
        instances: u32,
    },
}

/// Everybody; ratios are to the first.
pub const RIVALS: [Kind; 6] = [
    kind("nginx", What::Nginx, true),
    kind("HAProxy", What::Haproxy, true),
    kind("ours, plain", What::Ours { whole: false }, true),
    kind("ours, JWT and rate limit", What::Ours { whole: true }, true),
    kind("Express, 2 by PM2", What::Express { instances: 2 }, false),
    kind("Express, 4 by PM2", What::Express { instances: 4 }, false),
];

const fn kind(name: &'static str, what: What, carries_half: bool) -> Kind {
    Kind {
        name,
        what,
        carries_half,
    }
}

/// A proxy that runs.
pub struct Rival {
    pub kind: Kind,
    pub process: Process,
    pub headers: Vec<String>,
    pub folder: PathBuf,
    port: u16,
    /// The upstream's place in the registry of a gateway.
    listed: Option<(Registry, Membership)>,
}

impl Rival {
    /// What is asked for.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}{PATH}", self.port)
    }

    /// Ends it.
    pub async fn end(self) -> anyhow::Result<()> {
        self.process.end().await?;
        if let Some((registry, _)) = self.listed {
            registry.leave_all().await?;
        }
        Ok(())
    }
}

/// What a proxy is started with.
pub struct Place<'a> {
    /// Where it puts its files.
    pub folder: &'a Path,
    /// On which core it runs.
    pub core: &'a str,
    /// The port of the upstream.
    pub upstream: u16,
    /// The stores that those share who need some.
    pub stores: &'a Private,
}

/// Starts one and waits until it passes requests on.
pub async fn start(kind: Kind, place: &Place<'_>) -> anyhow::Result<Rival> {
    let name = kind.name.replace([' ', ','], "-");
    let folder = place.folder.join(name);
    fs::create_dir_all(&folder)?;
    let port = free_port().await?;
    let (mut listed, mut headers) = (None, Vec::new());
    let mut process = match kind.what {
        What::Nginx => nginx(place, &folder, port)?,
        What::Haproxy => haproxy(place, &folder, port)?,
        What::Ours { whole } => {
            let (mut process, upstream) = ours(place, &folder, port, whole).await?;
            listed = Some(upstream);
            if whole {
                answers(&mut process, port, "/health", &[]).await?;
                headers.push(format!("authorization: Bearer {}", token(port).await?));
            }
            process
        }
        What::Express { instances } => {
            headers.push(format!(
                "authorization: Bearer {}",
                peers::express_token(EXPRESS_SECRET).await?
            ));
            express(place, &folder, port, instances)?
        }
    };
    answers(&mut process, port, PATH, &headers).await?;
    Ok(Rival {
        kind,
        process,
        headers,
        folder,
        port,
        listed,
    })
}

fn nginx(place: &Place<'_>, folder: &Path, port: u16) -> anyhow::Result<Process> {
    let conf = format!(
        "daemon off; worker_processes 1; pid {folder}/pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  upstream devices {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://devices; proxy_http_version 1.1; proxy_set_header Connection \"\";
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Request-Id $request_id;
    }}
  }}
}}
",
        folder = folder.display(),
        upstream = place.upstream,
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, conf)?;
    let file = file.display().to_string();
    let arguments = ["-e", "stderr", "-c", &file];
    Process::start(folder, "nginx", place.core, "nginx", &arguments, &[])
}

fn haproxy(place: &Place<'_>, folder: &Path, port: u16) -> anyhow::Result<Process> {
    let conf = format!(
        "global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option http-keep-alive
  option forwardfor
  http-reuse always
frontend door
  bind 127.0.0.1:{port}
  unique-id-format %{{+X}}o%ci%cp%Ts%rt
  unique-id-header X-Request-Id
  default_backend devices
backend devices
  server one 127.0.0.1:{upstream}
",
        upstream = place.upstream,
    );
    let file = folder.join("haproxy.cfg");
    fs::write(&file, conf)?;
    let file = file.display().to_string();
    Process::start(
        folder,
        "haproxy",
        place.core,
        "haproxy",
        &["-f", &file],
        &[],
    )
}

/// Signs somebody up and in.
async fn token(port: u16) -> anyhow::Result<String> {
    let json = ["content-type: application/json".to_owned()];
    let name = r#""username": "bench", "password": "correct horse 4 batteries""#;
    for (path, body) in [
        (
            "/api/auth/register",
            format!(r#"{{{name}, "email": "bench@example.com"}}"#),
        ),
        ("/api/auth/login", format!("{{{name}}}")),
    ] {
        let reply = wrk::ask(port, "POST", path, &json, &body).await?;
        let token = reply.split(r#""access_token":""#).nth(1);
        if let Some((token, _)) = token.and_then(|rest| rest.split_once('"')) {
            return Ok(token.to_owned());
        }
        ensure!(
            reply.starts_with("HTTP/1.1 201"),
            "{path} gave no token: {}",
            reply.lines().next().unwrap_or_default()
        );
    }
    anyhow::bail!("who signed in got no token")
}

/// A gateway whose upstream joins the registry as a service. The whole one has the users whose tokens it verifies.
async fn ours(
    place: &Place<'_>,
    folder: &Path,
    port: u16,
    whole: bool,
) -> anyhow::Result<(Process, (Registry, Membership))> {
    let program = std::env::current_exe()?.with_file_name("gateway");
    ensure!(
        program.exists(),
        "there is no {}: run `cargo build --release -p gateway` first",
        program.display()
    );
    let prefix = format!("bench-{whole}");
    let users = free_port().await?;
    let registry = Registry::new(place.stores.redis.clone(), Keys::new(&prefix));
    let membership = registry
        .join(Announcement {
            service: "devices".to_owned(),
            address: format!("127.0.0.1:{}", place.upstream),
            host: "localhost".to_owned(),
            zone: None,
            pid: std::process::id(),
            version: "bench".to_owned(),
            started_at: std::time::SystemTime::now().into(),
            replica: "upstream".to_owned(),
        })
        .await?;
    let env = [
        ("REDIS_URL", place.stores.redis_url().to_owned()),
        ("DATABASE_URL", place.stores.database_url().to_owned()),
        ("KEY_PREFIX", prefix),
        ("GATEWAY_PORT", port.to_string()),
        ("CLOUDPHONE_HOME", folder.display().to_string()),
        ("USERS_PORT", users.to_string()),
        ("RATE_LIMITS", whole.to_string()),
        (
            "ACCESS_LOG_SAMPLE",
            if whole { "0.01" } else { "0" }.to_owned(),
        ),
        ("RATE_LIMIT_PER_SECOND", "1000000".to_owned()),
        ("RATE_LIMIT_BURST", "1000000".to_owned()),
        ("RATE_LIMIT_USER_PER_SECOND", "1000000".to_owned()),
        ("RATE_LIMIT_USER_BURST", "1000000".to_owned()),
        ("LOG_LEVEL", "warn".to_owned()),
    ];
    let program = program.display().to_string();
    let services = if whole { "gateway,users" } else { "gateway" };
    let arguments = ["serve", "--services", services];
    let process = Process::start(folder, "gateway", place.core, &program, &arguments, &env)?;
    Ok((process, (registry, membership)))
}

fn express(place: &Place<'_>, folder: &Path, port: u16, instances: u32) -> anyhow::Result<Process> {
    let peers = peers::folder()?;
    let env = [
        ("PM2_HOME", folder.display().to_string()),
        ("PORT", port.to_string()),
        ("UPSTREAM", format!("http://127.0.0.1:{}", place.upstream)),
        ("REDIS_URL", place.stores.redis_url().to_owned()),
        ("JWT_SECRET", EXPRESS_SECRET.to_owned()),
        ("NODE_ENV", "production".to_owned()),
    ];
    let pm2 = peers
        .join("node_modules/.bin/pm2-runtime")
        .display()
        .to_string();
    let script = peers.join("express-gateway.cjs").display().to_string();
    let count = instances.to_string();
    let arguments = ["start", &script, "-i", &count];
    Process::start(folder, "pm2", place.core, &pm2, &arguments, &env)
}

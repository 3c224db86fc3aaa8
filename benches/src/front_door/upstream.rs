//! What all proxies stand before: an nginx that answers a small JSON document by itself.

use std::fs;
use std::path::Path;

use super::{answers, free_port};
use crate::process::Process;

/// The upstream.
pub struct Upstream {
    pub process: Process,
    pub port: u16,
}

/// Starts it on some cores.
pub async fn start(folder: &Path, cores: &str) -> anyhow::Result<Upstream> {
    let port = free_port().await?;
    let conf = format!(
        r#"daemon off; worker_processes 1; pid {folder}/upstream.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s;
  client_body_temp_path {folder}/upstream-body; proxy_temp_path {folder}/upstream-proxy;
  fastcgi_temp_path {folder}/upstream-fastcgi; uwsgi_temp_path {folder}/upstream-uwsgi; scgi_temp_path {folder}/upstream-scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ default_type application/json; return 200 '{{"id":"device-1","status":"running","name":"one"}}'; }}
  }}
}}
"#,
        folder = folder.display()
    );
    let file = folder.join("upstream.conf");
    fs::write(&file, conf)?;
    let file = file.display().to_string();
    let arguments = ["-e", "stderr", "-c", &file];
    let mut process = Process::start(folder, "upstream", cores, "nginx", &arguments, &[])?;
    answers(&mut process, port, "/", &[]).await?;
    Ok(Upstream { process, port })
}

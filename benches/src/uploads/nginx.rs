//! nginx that takes files by `WebDAV`.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use futures::future::try_join_all;
use reqwest::{Body, Client};
use tokio::fs::File;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Duration, Instant, sleep};
use tokio_util::io::ReaderStream;

use super::package::Package;
use super::{Turn, watched};
use crate::process::Process;

/// How long it may take to begin.
const START: Duration = Duration::from_secs(10);
/// How much of a file is read at a time.
pub const PIECE: usize = 256 << 10;

/// One that runs.
pub struct Nginx {
    process: Process,
    client: Client,
    port: u16,
    root: PathBuf,
}

impl Nginx {
    /// Starts it; what it takes lies below the folder.
    pub async fn start(folder: &Path) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
        let root = folder.join("dav");
        std::fs::create_dir(&root)?;
        // Workers of a root's nginx are nobody else, who must not write here.
        let user = if nix::unistd::geteuid().is_root() {
            "user root; "
        } else {
            ""
        };
        // What comes lies in the same file system, so that it is renamed and not copied.
        let conf = format!(
            "{user}daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_max_body_size 0;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{
    listen 127.0.0.1:{port};
    root {root};
    location / {{ dav_methods PUT; }}
  }}
}}
",
            folder = folder.display(),
            root = root.display(),
        );
        let file = folder.join("nginx.conf");
        std::fs::write(&file, conf)?;
        let file = file.display().to_string();
        let cores = format!("0-{}", std::thread::available_parallelism()?.get() - 1);
        let arguments = ["-e", "stderr", "-c", &file];
        let mut process = Process::start(folder, "nginx", &cores, "nginx", &arguments, &[])?;
        let until = Instant::now() + START;
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            process.ensure_alive()?;
            ensure!(Instant::now() < until, "nginx does not begin");
            sleep(Duration::from_millis(20)).await;
        }
        Ok(Self {
            process,
            client: Client::new(),
            port,
            root,
        })
    }

    /// Puts packages there at once, and deletes them outside of the clock.
    pub async fn put(&self, packages: &[Package]) -> anyhow::Result<Turn> {
        let puts = packages
            .iter()
            .enumerate()
            .map(|(number, package)| async move {
                let file = ReaderStream::with_capacity(File::open(&package.path).await?, PIECE);
                let url = format!("http://127.0.0.1:{}/{number}.apk", self.port);
                let put = self.client.put(url).header("content-length", package.size);
                let reply = put.body(Body::wrap_stream(file)).send().await?;
                let status = reply.status();
                ensure!(status.is_success(), "nginx answers {status}");
                Ok(self.root.join(format!("{number}.apk")))
            });
        let (files, turn) = watched(&self.process, try_join_all(puts)).await?;
        for file in files {
            tokio::fs::remove_file(file).await?;
        }
        Ok(turn)
    }

    /// Ends it.
    pub async fn end(self) -> anyhow::Result<()> {
        self.process.end().await
    }
}

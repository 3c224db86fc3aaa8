//! A replica of the gateway with the service of apps, and a client who is signed in.

use std::path::Path;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use reqwest::multipart::{Form, Part};
use reqwest::{Body, Client, StatusCode};
use serde_json::Value;
use tokio::fs::File;
use tokio::net::TcpListener;
use tokio_util::io::ReaderStream;

use super::nginx::PIECE;
use super::package::Package;
use super::{Turn, watched};
use crate::account::{expect, sign_in};
use crate::process::Process;
use crate::stores::Private;

/// A replica that runs.
pub struct Replica {
    process: Process,
    client: Client,
    base: String,
    token: String,
}

impl Replica {
    /// Starts it; packages lie below the folder.
    pub async fn start(stores: &Private, folder: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("gateway");
        ensure!(
            program.exists(),
            "there is no {}: build the package gateway in the same profile first",
            program.display()
        );
        let mut ports = Vec::new();
        for _ in 0..3 {
            ports.push(TcpListener::bind("127.0.0.1:0").await?);
        }
        let [gateway, users, apps] = &ports[..] else {
            anyhow::bail!("three ports were taken");
        };
        let port = |listener: &TcpListener| listener.local_addr().map(|at| at.port().to_string());
        let gateway = port(gateway)?;
        let env = [
            ("REDIS_URL", stores.redis_url().to_owned()),
            ("DATABASE_URL", stores.database_url().to_owned()),
            ("KEY_PREFIX", "bench-uploads".to_owned()),
            ("CLOUDPHONE_HOME", folder.join("home").display().to_string()),
            (
                "OBJECTS_FOLDER",
                folder.join("objects").display().to_string(),
            ),
            ("GATEWAY_PORT", gateway.clone()),
            ("USERS_PORT", port(users)?),
            ("APPS_PORT", port(apps)?),
            ("RATE_LIMITS", "false".to_owned()),
            ("LOG_LEVEL", "warn".to_owned()),
        ];
        drop(ports);
        let program = program.display().to_string();
        let arguments = ["serve", "--services", "gateway,users,apps"];
        let cores = format!("0-{}", std::thread::available_parallelism()?.get() - 1);
        let mut process = Process::start(folder, "gateway", &cores, &program, &arguments, &env)?;
        let client = Client::new();
        let base = format!("http://127.0.0.1:{gateway}/api");
        let token = sign_in(&mut process, &client, &base).await?;
        Ok(Self {
            process,
            client,
            base,
            token,
        })
    }

    /// Uploads packages at once, and deletes the apps outside of the clock.
    pub async fn upload(&self, packages: &[Package]) -> anyhow::Result<Turn> {
        let uploads = packages
            .iter()
            .enumerate()
            .map(|(number, package)| async move {
                let file = ReaderStream::with_capacity(File::open(&package.path).await?, PIECE);
                let file = Part::stream_with_length(Body::wrap_stream(file), package.size);
                let form = Form::new()
                    .text("packageName", format!("com.example.bench{number}"))
                    .part("file", file.file_name("bench.apk"));
                let upload = self.client.post(format!("{}/apps/upload", self.base));
                let reply = upload.bearer_auth(&self.token).multipart(form).send();
                let app: Value =
                    serde_json::from_str(&expect(reply.await?, StatusCode::CREATED).await?)?;
                let id = app["id"].as_str().context("the app has no id")?;
                Ok(id.to_owned())
            });
        let (ids, turn) = watched(&self.process, try_join_all(uploads)).await?;
        for id in ids {
            let delete = self.client.delete(format!("{}/apps/{id}", self.base));
            let reply = delete.bearer_auth(&self.token).send().await?;
            expect(reply, StatusCode::OK).await?;
        }
        Ok(turn)
    }

    /// Ends it.
    pub async fn end(self) -> anyhow::Result<()> {
        self.process.end().await
    }
}

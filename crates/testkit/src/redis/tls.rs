//! A Redis that speaks TLS only, to those who know user and password; its certificate is signed by an authority of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::process::Command;

use super::{PATIENCE, ask};
use crate::address::Address;
use crate::eventually::eventually;
use crate::server::Server;

const USER: &str = "cloudphone";
const PASSWORD: &str = "right-horse";

/// A server with a certificate for its address.
pub struct TlsRedis {
    server: Server,
    at: SocketAddr,
    _address: Address,
    folder: TempDir,
}

impl TlsRedis {
    /// Makes an authority and a certificate, starts the server and waits until it answers.
    pub async fn start() -> anyhow::Result<Self> {
        let (folder, address) = (TempDir::with_prefix("redis-tls-")?, Address::take()?);
        let at = SocketAddr::from((address.ip, 6379));
        make_certificates(folder.path(), &address.ip.to_string()).await?;
        let ip = address.ip.to_string();
        let acl = format!(">{PASSWORD}");
        let arguments = [
            "--bind",
            &ip,
            "--port",
            "0",
            "--tls-port",
            "6379",
            "--save",
            "",
            "--tls-cert-file",
            "server.crt",
            "--tls-key-file",
            "server.key",
            "--tls-ca-cert-file",
            "ca.crt",
            "--tls-auth-clients",
            "no",
            "--user",
            "default",
            "off",
            "--user",
            USER,
            "on",
            &acl,
            "~*",
            "&*",
            "+@all",
        ];
        let arguments = arguments.map(str::to_owned).to_vec();
        let server = Server::start("redis-server", arguments, folder.path().to_owned(), "redis")?;
        let started = Self {
            server,
            at,
            _address: address,
            folder,
        };
        started.ready().await;
        Ok(started)
    }

    /// Kills it, starts it again without its data, and waits until it answers.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.server.end(Signal::SIGKILL);
        self.server.start_again()?;
        self.ready().await;
        Ok(())
    }

    async fn ready(&self) {
        let ca = self.authority().display().to_string();
        let options = [
            "--tls",
            "--cacert",
            &ca,
            "--no-auth-warning",
            "--user",
            USER,
            "--pass",
            PASSWORD,
        ];
        eventually(PATIENCE, "Redis answers by TLS", async || {
            let answer = ask(self.at, &options, &["ping"]).await?;
            ensure!(answer == "PONG", "{answer}");
            Ok(())
        })
        .await;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.at
    }

    /// Its URL, with user and password.
    pub fn url(&self) -> String {
        format!("rediss://{USER}:{PASSWORD}@{}", self.at)
    }

    /// The certificate of the authority that signed its own.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }
}

async fn make_certificates(folder: &Path, ip: &str) -> anyhow::Result<()> {
    std::fs::write(
        folder.join("server.cnf"),
        format!("subjectAltName=IP:{ip}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n"),
    )?;
    let curve = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ];
    let authority = [
        "req",
        "-x509",
        "-days",
        "2",
        "-subj",
        "/CN=cloudphone tests",
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
    ];
    let request = [
        "req",
        "-subj",
        "/CN=redis",
        "-keyout",
        "server.key",
        "-out",
        "server.csr",
    ];
    let sign = [
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "server.cnf",
        "-out",
        "server.crt",
    ];
    openssl(folder, &[&authority[..], &curve[..]].concat()).await?;
    openssl(folder, &[&request[..], &curve[..]].concat()).await?;
    openssl(folder, &sign).await
}

async fn openssl(folder: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(folder)
        .kill_on_drop(true)
        .output()
        .await
        .context("openssl does not start: tests/install installs it")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "openssl {arguments:?}: {said}");
    Ok(())
}

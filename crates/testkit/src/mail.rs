//! A server that takes mail, and remembers it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::eventually;

/// How long mails, and the lines of one who brings them, are waited for.
const SOON: Duration = Duration::from_secs(30);

/// A server that takes mail.
#[derive(Debug)]
pub struct MailServer {
    /// Where it listens.
    pub address: SocketAddr,
    mails: Arc<Mutex<Vec<String>>>,
    refusal: Arc<Mutex<Option<&'static str>>>,
    _serving: JoinSet<()>,
}

impl MailServer {
    /// Listens on a free port.
    ///
    /// # Panics
    /// Where there is none.
    pub async fn open() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        let mails = Arc::new(Mutex::new(Vec::new()));
        let refusal = Arc::new(Mutex::new(None));
        let mut serving = JoinSet::new();
        let (taken, refused) = (mails.clone(), refusal.clone());
        serving.spawn(async move {
            let mut talks = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                talks.spawn(talk(stream, taken.clone(), refused.clone()));
            }
        });
        Self {
            address,
            mails,
            refusal,
            _serving: serving,
        }
    }

    /// Answers each recipient with this.
    pub fn refuses(&self, with: Option<&'static str>) {
        *held(&self.refusal) = with;
    }

    /// What it took, as it came.
    pub fn mails(&self) -> Vec<String> {
        held(&self.mails).clone()
    }

    /// Waits for so many mails.
    ///
    /// # Panics
    /// Where they do not come.
    pub async fn after(&self, count: usize) -> Vec<String> {
        eventually(SOON, "the mails", async || {
            let taken = self.mails().len();
            anyhow::ensure!(taken >= count, "{taken} of {count}");
            Ok(())
        })
        .await;
        self.mails()
    }
}

async fn talk(
    stream: TcpStream,
    mails: Arc<Mutex<Vec<String>>>,
    refusal: Arc<Mutex<Option<&'static str>>>,
) -> Option<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    writer.write_all(b"220 sink\r\n").await.ok()?;
    let mut mail: Option<String> = None;
    loop {
        let line = tokio::time::timeout(SOON, lines.next_line())
            .await
            .ok()?
            .ok()??;
        let answer = match (&mut mail, line.as_str()) {
            (Some(_), ".") => {
                held(&mails).extend(mail.take());
                "250 taken"
            }
            (Some(text), more) => {
                text.push_str(more);
                text.push('\n');
                continue;
            }
            (None, "DATA") => {
                mail = Some(String::new());
                "354 go on"
            }
            (None, line) if line.starts_with("RCPT") => held(&refusal).unwrap_or("250 ok"),
            (None, "QUIT") => "221 bye",
            (None, _) => "250 ok",
        };
        writer
            .write_all(format!("{answer}\r\n").as_bytes())
            .await
            .ok()?;
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

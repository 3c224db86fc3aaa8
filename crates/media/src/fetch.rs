//! Files behind URLs: what users name as inputs, and what providers made. Every address is judged before it is called,
//! also those that a redirect leads to.

use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use http::header;
use platform::Platform;
use platform::objects::Objects;
use platform::outbound::Rules;
use platform::problem::causes;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};
use tokio::time::timeout;

use crate::Config;
use crate::job::Fault;

const CONNECT: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(20);
const WHOLE: Duration = Duration::from_secs(120);
const REDIRECTS: usize = 3;

/// The way to files elsewhere.
#[derive(Clone, Debug)]
pub struct Fetcher {
    client: Client,
    rules: Rules,
}

impl Fetcher {
    /// Connects when it is used.
    ///
    /// # Errors
    /// Where the loopback is allowed outside the sandbox, or TLS cannot be set up.
    pub fn new(platform: &Platform, config: &Config) -> anyhow::Result<Self> {
        let sandbox = platform.settings.sandbox;
        ensure!(
            sandbox || !config.fetch_loopback,
            "MEDIA_FETCH_LOOPBACK is for the sandbox"
        );
        let rules = Rules {
            plain: true,
            loopback: config.fetch_loopback,
        };
        let client = Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .dns_resolver(rules)
            // Each call is judged anew.
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .user_agent("Cloudphone")
            .build()?;
        Ok(Self { client, rules })
    }

    /// Which addresses may be named.
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// Reads a file of at most so many bytes.
    ///
    /// # Errors
    /// Lasting where the address, the answer or the file is refused; passing where another try may help.
    pub async fn read(&self, url: &str, most: u64) -> Result<Bytes, Fault> {
        let reading = async {
            let mut response = self.open(url, most).await?;
            let mut file = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(|_| cut())? {
                if (file.len() + chunk.len()) as u64 > most {
                    return Err(too_large(most));
                }
                file.extend_from_slice(&chunk);
            }
            Ok(file.into())
        };
        timeout(WHOLE, reading)
            .await
            .unwrap_or_else(|_| Err(slow()))
    }

    /// Copies a file of at most so many bytes to the object store, under a key that ends with its kind.
    ///
    /// # Errors
    /// As [`Self::read`]; also where the store does not answer. Nothing is visible then.
    pub async fn copy(
        &self,
        url: &str,
        most: u64,
        objects: &Objects,
        key: &str,
    ) -> Result<String, Fault> {
        let copying = async {
            let mut response = self.open(url, most).await?;
            let mut head = Vec::new();
            while head.len() < HEAD {
                let Some(chunk) = response.chunk().await.map_err(|_| cut())? else {
                    break;
                };
                head.extend_from_slice(&chunk);
            }
            let kind = FileKind::of(&head).ok_or_else(|| {
                Fault::lasting("OUTPUT_INVALID", "an output is no picture, video or text")
            })?;
            let key = format!("{key}.{}", kind.extension());
            let down = |error| Fault::passing("STORAGE_DOWN", causes(&error));
            let mut writing = objects.write(&key).await.map_err(down)?;
            let mut next = Some(Bytes::from(head));
            while let Some(chunk) = next {
                if writing.size + chunk.len() as u64 > most {
                    writing.abort().await;
                    return Err(too_large(most));
                }
                if let Err(error) = writing.push(&chunk).await {
                    writing.abort().await;
                    return Err(down(error));
                }
                next = match response.chunk().await {
                    Ok(next) => next,
                    Err(_) => {
                        writing.abort().await;
                        return Err(cut());
                    }
                };
            }
            writing.finish().await.map_err(down)?;
            Ok(key)
        };
        timeout(WHOLE, copying)
            .await
            .unwrap_or_else(|_| Err(slow()))
    }

    async fn open(&self, url: &str, most: u64) -> Result<Response, Fault> {
        let refused = |refusal| Fault::lasting("URL_REFUSED", format!("the URL {refusal}"));
        let mut url: Url = self.rules.url(url).map_err(refused)?;
        for _ in 0..=REDIRECTS {
            let response = self
                .client
                .get(url.clone())
                .send()
                .await
                .map_err(|error| unreached(&error))?;
            let status = response.status();
            if status.is_redirection() {
                let to = response
                    .headers()
                    .get(header::LOCATION)
                    .and_then(|to| to.to_str().ok());
                let to = to.and_then(|to| url.join(to).ok());
                let to = to.ok_or_else(|| Fault::lasting("URL_REFUSED", "it leads nowhere"))?;
                url = self.rules.url(to.as_str()).map_err(refused)?;
                continue;
            }
            if !status.is_success() {
                let told = format!("the server of a file answered {}", status.as_u16());
                return Err(match status.is_client_error() && status.as_u16() != 429 {
                    true => Fault::lasting("URL_REFUSED", told),
                    false => Fault::passing("URL_UNREACHABLE", told),
                });
            }
            if response
                .content_length()
                .is_some_and(|length| length > most)
            {
                return Err(too_large(most));
            }
            return Ok(response);
        }
        Err(Fault::lasting("URL_REFUSED", "it leads on too often"))
    }
}

/// Bytes that tell what a file is.
const HEAD: usize = 16;

/// What a file is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Jpeg,
    Png,
    Webp,
    Mp4,
    Text,
    Subtitles,
}

impl FileKind {
    /// By the first bytes; `None` for what is not offered.
    pub fn of(file: &[u8]) -> Option<Self> {
        match file {
            [0xFF, 0xD8, 0xFF, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', ..] => Some(Self::Png),
            [
                b'R',
                b'I',
                b'F',
                b'F',
                _,
                _,
                _,
                _,
                b'W',
                b'E',
                b'B',
                b'P',
                ..,
            ] => Some(Self::Webp),
            [_, _, _, _, b'f', b't', b'y', b'p', ..] => Some(Self::Mp4),
            _ => None,
        }
    }

    /// By the end of a key.
    pub fn of_key(key: &str) -> Option<Self> {
        let (_, extension) = key.rsplit_once('.')?;
        [
            Self::Jpeg,
            Self::Png,
            Self::Webp,
            Self::Mp4,
            Self::Text,
            Self::Subtitles,
        ]
        .into_iter()
        .find(|kind| kind.extension() == extension)
    }

    /// The end of its keys.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::Webp => "webp",
            Self::Mp4 => "mp4",
            Self::Text => "txt",
            Self::Subtitles => "srt",
        }
    }

    /// Its name in HTTP.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::Webp => "image/webp",
            Self::Mp4 => "video/mp4",
            Self::Text => "text/plain; charset=utf-8",
            Self::Subtitles => "application/x-subrip",
        }
    }
}

/// What a user is told: nothing of the network that the call went through.
fn unreached(error: &reqwest::Error) -> Fault {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(refusal) = inner.downcast_ref::<platform::outbound::Refusal>() {
            return Fault::lasting("URL_REFUSED", format!("the URL {refusal}"));
        }
        cause = inner.source();
    }
    Fault::passing(
        "URL_UNREACHABLE",
        "the server of a file could not be reached",
    )
}

fn cut() -> Fault {
    Fault::passing("URL_UNREACHABLE", "a file did not come whole")
}

fn slow() -> Fault {
    Fault::passing("URL_UNREACHABLE", "a file took longer than 120 s")
}

fn too_large(most: u64) -> Fault {
    Fault::lasting(
        "INPUT_INVALID",
        format!("a file is larger than {} MiB", most >> 20),
    )
}

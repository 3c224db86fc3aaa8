//! What the tunnel asks a gateway for.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use http::{HeaderName, StatusCode, header};
use platform::Env;
use platform::auth::API_KEY_HEADER;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, Url};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::link::Socket;

/// How an API key begins.
const KEY: &str = "cp_";

/// By what the gateway knows whom the tunnel is for. It never stands among the arguments, which everybody on the machine can
/// read.
#[derive(Clone)]
pub enum Proof {
    /// In a file, which may be renewed at any moment.
    File(PathBuf),
    /// An access token.
    Token(SecretString),
    /// An API key.
    Key(SecretString),
}

impl Proof {
    /// The file, where one is named, else what the environment has.
    pub fn find(env: &mut Env, file: Option<PathBuf>) -> anyhow::Result<Self> {
        if let Some(file) = file {
            return Ok(Self::File(file));
        }
        if let Some(token) = env.text("CLOUDPHONE_TOKEN") {
            return Ok(Self::Token(token.into()));
        }
        match env.text("CLOUDPHONE_API_KEY") {
            Some(key) => Ok(Self::Key(key.into())),
            None => bail!(
                "no token: give --token-file FILE, or set CLOUDPHONE_TOKEN or CLOUDPHONE_API_KEY"
            ),
        }
    }

    /// The header that carries it.
    fn header(&self) -> Result<(HeaderName, String), Refusal> {
        Ok(match self {
            Self::Token(token) => bearer(token.expose_secret()),
            Self::Key(key) => (API_KEY_HEADER, key.expose_secret().trim().to_owned()),
            Self::File(path) => {
                let text = std::fs::read_to_string(path);
                let text = text.map_err(|error| {
                    Refusal::Broken(format!("cannot read {}: {error}", path.display()))
                })?;
                match text.trim() {
                    key if key.starts_with(KEY) => (API_KEY_HEADER, key.to_owned()),
                    token => bearer(token),
                }
            }
        })
    }
}

fn bearer(token: &str) -> (HeaderName, String) {
    (header::AUTHORIZATION, format!("Bearer {}", token.trim()))
}

/// Why the gateway did not do what it was asked.
#[derive(Debug)]
pub enum Refusal {
    /// It said no.
    Said {
        /// The status.
        status: StatusCode,
        /// In its words.
        message: String,
    },
    /// It could not be asked, or its answer not be read.
    Broken(String),
    /// It did not answer in time.
    Silent,
}

impl Refusal {
    /// Whether nothing will help: the device is gone, or the token no longer good.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Said { status, .. } if matches!(status.as_u16(), 400 | 401 | 403 | 404))
    }

    /// Whether it may be otherwise in a moment.
    pub fn passes(&self) -> bool {
        match self {
            Self::Said { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::Broken(_) | Self::Silent => true,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Said { status, message } => write!(f, "{message} ({})", status.as_u16()),
            Self::Broken(why) => f.write_str(why),
            Self::Silent => f.write_str("the gateway did not answer in time"),
        }
    }
}

impl From<reqwest::Error> for Refusal {
    fn from(error: reqwest::Error) -> Self {
        // Without the address, in which a ticket may stand.
        Self::Broken(platform::problem::causes(&error.without_url()))
    }
}

/// One device at one gateway. Clones are the same.
#[derive(Clone)]
pub struct Api {
    client: Client,
    base: Arc<Url>,
    proof: Proof,
}

impl Api {
    /// Connects when it is used.
    pub fn new(gateway: &str, proof: Proof, device: &str) -> anyhow::Result<Self> {
        if !contracts::id::is_valid(device) {
            bail!("`{device}` is no id of a device");
        }
        let base = format!("{}/api/devices/{device}/", gateway.trim_end_matches('/'));
        let base = Url::parse(&base).with_context(|| format!("`{gateway}` is no URL"))?;
        let is_local = matches!(base.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"))
            || base.host_str().is_some_and(|host| host.starts_with("127."));
        // A WebSocket is asked for by HTTP/1.1.
        // A redirect would take the key along, to whomever it names.
        let client = Client::builder().http1_only().redirect(Policy::none());
        let client = if is_local { client.no_proxy() } else { client };
        Ok(Self {
            client: client.build()?,
            base: Arc::new(base),
            proof,
        })
    }

    /// The name of the device, if it is there.
    pub async fn device(&self) -> Result<String, Refusal> {
        let reply = json(self.proven(self.client.get(self.url("connection")?))?).await?;
        Ok(reply["deviceName"].as_str().unwrap_or_default().to_owned())
    }

    /// A ticket for one connection.
    pub async fn ticket(&self) -> Result<String, Refusal> {
        let reply = json(self.proven(self.client.post(self.url("adb/ticket")?))?).await?;
        let ticket = reply["ticket"].as_str();
        let ticket = ticket.ok_or_else(|| Refusal::Broken("the reply has no ticket".to_owned()))?;
        Ok(ticket.to_owned())
    }

    /// Opens a tunnel by a ticket. The gateway's own words are told where it does not open one, so the handshake is made by
    /// the client that makes the other requests.
    pub async fn open(&self, ticket: &str) -> Result<Socket, Refusal> {
        let key = generate_key();
        let request = self
            .client
            .get(self.url("adb")?)
            .query(&[("ticket", ticket)])
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key);
        let response = request.send().await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let refusal = said(response).await;
            // Another ticket may do.
            return Err(match refusal {
                Refusal::Said { status, message } if status == StatusCode::UNAUTHORIZED => {
                    Refusal::Broken(message)
                }
                refusal => refusal,
            });
        }
        let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        if accept
            .is_none_or(|accept| accept.as_bytes() != derive_accept_key(key.as_bytes()).as_bytes())
        {
            return Err(Refusal::Broken(
                "what answers speaks no WebSocket".to_owned(),
            ));
        }
        let stream = response.upgrade().await?;
        Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
    }

    fn url(&self, path: &str) -> Result<Url, Refusal> {
        let url = self.base.join(path);
        url.map_err(|error| Refusal::Broken(error.to_string()))
    }

    fn proven(&self, request: RequestBuilder) -> Result<RequestBuilder, Refusal> {
        let (name, value) = self.proof.header()?;
        let mut value = http::HeaderValue::try_from(value)
            .map_err(|_| Refusal::Broken("the token is no token".to_owned()))?;
        value.set_sensitive(true);
        Ok(request.header(name, value))
    }
}

async fn json(request: RequestBuilder) -> Result<Value, Refusal> {
    let response = request.send().await?;
    if !response.status().is_success() {
        return Err(said(response).await);
    }
    Ok(response.json().await?)
}

/// What a refusal says.
async fn said(response: Response) -> Refusal {
    let status = response.status();
    let body: Value = response.json().await.unwrap_or_default();
    let message = body["message"].as_str();
    Refusal::Said {
        status,
        message: message.unwrap_or("the gateway refused").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_what_is_final_ends_the_command() {
        for (status, passes, is_final) in [
            (401, false, true),
            (403, false, true),
            (404, false, true),
            (409, false, false),
            (429, true, false),
            (502, true, false),
            (503, true, false),
        ] {
            let refusal = Refusal::Said {
                status: StatusCode::from_u16(status).unwrap(),
                message: String::new(),
            };
            assert_eq!(
                (refusal.passes(), refusal.is_final()),
                (passes, is_final),
                "{status}"
            );
        }
        assert!(Refusal::Silent.passes() && !Refusal::Silent.is_final());
    }

    #[test]
    fn a_file_holds_a_token_or_a_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        for (text, name, value) in [
            ("abc.def.ghi\n", header::AUTHORIZATION, "Bearer abc.def.ghi"),
            (" cp_live_1234567\n", API_KEY_HEADER, "cp_live_1234567"),
        ] {
            std::fs::write(&path, text).unwrap();
            let proof = Proof::find(&mut Env::of([]), Some(path.clone())).unwrap();
            assert_eq!(proof.header().unwrap(), (name, value.to_owned()));
        }
        assert!(Proof::find(&mut Env::of([]), None).is_err());
    }
}

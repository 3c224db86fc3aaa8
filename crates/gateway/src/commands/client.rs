//! A gateway as its clients see it: where it is, by what it knows whom they act for, and how it refuses.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use http::{HeaderName, Method, StatusCode, header};
use platform::Env;
use platform::auth::API_KEY_HEADER;
use reqwest::redirect::Policy;
use reqwest::{RequestBuilder, Response, Url};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

/// How long the answer to one question may take.
const ANSWER: Duration = Duration::from_secs(10);
const DEFAULT_PORT: u16 = 30000;

/// Which gateway is asked, and by whose token.
#[derive(Args)]
pub struct Asking {
    /// A gateway of the cluster; default `CLOUDPHONE_URL` of the environment, else `GATEWAY_PORT` (30000) of this machine.
    #[arg(long, value_name = "URL")]
    pub gateway: Option<String>,
    /// A file with an access token or an API key; it is read anew each time. Without it, `CLOUDPHONE_TOKEN` or
    /// `CLOUDPHONE_API_KEY` of the environment is used.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

impl Asking {
    /// The client that the options and the environment tell of. It connects when it is used.
    pub fn client(self, mut env: Env) -> anyhow::Result<Client> {
        let port = env.within("GATEWAY_PORT", DEFAULT_PORT, (1, u16::MAX));
        let told = self.gateway.or_else(|| env.text("CLOUDPHONE_URL"));
        let proof = Proof::find(&mut env, self.token_file);
        env.finish()?;
        let gateway = told.unwrap_or_else(|| format!("http://127.0.0.1:{port}"));
        Client::new(&gateway, proof?)
    }
}

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
    /// Nobody took the connection.
    Unreachable {
        /// Which one was tried.
        gateway: String,
        /// What the system said.
        why: String,
    },
    /// It did not answer in time.
    Silent {
        /// Which one was asked.
        gateway: String,
    },
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
            Self::Broken(_) | Self::Unreachable { .. } | Self::Silent { .. } => true,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Said { status, message } => write!(f, "{message} ({})", status.as_u16()),
            Self::Broken(why) => f.write_str(why),
            Self::Unreachable { gateway, why } => write!(
                f,
                "no gateway is reached at {gateway} ({why}): name one by --gateway URL or CLOUDPHONE_URL, or one of this \
                 machine by GATEWAY_PORT; `gateway status` tells on a machine of the cluster which there are"
            ),
            Self::Silent { gateway } => write!(f, "{gateway} did not answer in time"),
        }
    }
}

/// A client of one gateway. Clones are the same.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    api: Url,
    proof: Proof,
}

impl Client {
    fn new(gateway: &str, proof: Proof) -> anyhow::Result<Self> {
        let api = format!("{}/api/", gateway.trim_end_matches('/'));
        let api = Url::parse(&api).with_context(|| format!("`{gateway}` is no URL"))?;
        if !["http", "https"].contains(&api.scheme()) {
            bail!("`{gateway}` is no URL of a gateway: it begins with http:// or https://");
        }
        let is_local = matches!(api.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"))
            || api.host_str().is_some_and(|host| host.starts_with("127."));
        // A WebSocket is asked for by HTTP/1.1.
        // A redirect would take the key along, to whomever it names.
        let http = reqwest::Client::builder()
            .http1_only()
            .redirect(Policy::none());
        let http = if is_local { http.no_proxy() } else { http };
        Ok(Self {
            http: http.build()?,
            api,
            proof,
        })
    }

    /// A request below `/api/`, without proof of who asks.
    pub fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, Refusal> {
        let url = self.api.join(path);
        let url = url.map_err(|error| Refusal::Broken(error.to_string()))?;
        Ok(self.http.request(method, url))
    }

    /// What the gateway answers to whom the token is of.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Refusal> {
        let (name, value) = self.proof.header()?;
        let mut value = http::HeaderValue::try_from(value)
            .map_err(|_| Refusal::Broken("the token is no token".to_owned()))?;
        value.set_sensitive(true);
        let request = self.request(method, path)?.header(name, value);
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        let response = self.send(request.timeout(ANSWER)).await?;
        if !response.status().is_success() {
            return Err(said(response).await);
        }
        response.json().await.map_err(|error| self.broken(&error))
    }

    /// Sends a request.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, Refusal> {
        request.send().await.map_err(|error| self.broken(&error))
    }

    /// Why there is no whole answer. Of the address no more is told than the gateway's: a ticket may stand behind it.
    pub fn broken(&self, error: &reqwest::Error) -> Refusal {
        let gateway = self.api.origin().ascii_serialization();
        if error.is_timeout() {
            return Refusal::Silent { gateway };
        }
        // The innermost cause is what the system said; what stands around it names layers.
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        match error.is_connect() {
            true => Refusal::Unreachable {
                gateway,
                why: cause.to_string(),
            },
            false => Refusal::Broken(format!("the answer of {gateway} broke off: {cause}")),
        }
    }

    /// Nothing came in time.
    pub fn silent(&self) -> Refusal {
        Refusal::Silent {
            gateway: self.api.origin().ascii_serialization(),
        }
    }
}

/// What a refusal says.
pub async fn said(response: Response) -> Refusal {
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
        let gateway = "http://127.0.0.1:1".to_owned();
        let silent = Refusal::Silent { gateway };
        assert!(silent.passes() && !silent.is_final());
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

    /// Clients need it, also where they speak no TLS.
    fn with_tls() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }

    #[tokio::test]
    async fn where_nobody_listens_the_address_is_told_and_how_to_name_another() {
        with_tls();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port().to_string();
        drop(free);
        let env = Env::of([("GATEWAY_PORT", &port), ("CLOUDPHONE_TOKEN", "t")]);
        let asking = Asking {
            gateway: None,
            token_file: None,
        };
        let client = asking.client(env).unwrap();

        let refused = client.ask(Method::GET, "nodes", None).await.unwrap_err();

        let told = refused.to_string();
        for part in [&port, "CLOUDPHONE_URL", "--gateway", "refused"] {
            assert!(told.contains(part), "{told}");
        }
        assert!(refused.passes() && !refused.is_final());
    }

    #[test]
    fn the_gateway_is_the_one_named_first() {
        with_tls();
        let url = |gateway: Option<&str>, env: Env| {
            let gateway = gateway.map(str::to_owned);
            let token_file = Some(PathBuf::from("token"));
            let asking = Asking {
                gateway,
                token_file,
            };
            asking.client(env).map(|client| client.api.to_string())
        };
        let both = || Env::of([("CLOUDPHONE_URL", "https://b/"), ("GATEWAY_PORT", "4")]);

        assert_eq!(url(Some("http://a:1"), both()).unwrap(), "http://a:1/api/");
        assert_eq!(url(None, both()).unwrap(), "https://b/api/");
        let port = Env::of([("GATEWAY_PORT", "4")]);
        assert_eq!(url(None, port).unwrap(), "http://127.0.0.1:4/api/");
        let usual = url(None, Env::of([])).unwrap();
        assert_eq!(usual, "http://127.0.0.1:30000/api/");
        assert!(url(Some("localhost:30000"), both()).is_err());
    }
}

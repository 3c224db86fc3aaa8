//! What the tunnel asks a gateway for.

use anyhow::bail;
use http::{Method, StatusCode, header};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::super::client::{Client, Refusal, said};
use super::link::Socket;

/// One device at one gateway. Clones are the same.
#[derive(Clone)]
pub struct Api {
    client: Client,
    device: String,
}

impl Api {
    /// Connects when it is used.
    pub fn new(client: Client, device: &str) -> anyhow::Result<Self> {
        if !contracts::id::is_valid(device) {
            bail!("`{device}` is no id of a device");
        }
        Ok(Self {
            client,
            device: device.to_owned(),
        })
    }

    /// The name of the device, if it is there.
    pub async fn device(&self) -> Result<String, Refusal> {
        let path = self.path("connection");
        let reply = self.client.ask(Method::GET, &path, None).await?;
        Ok(reply["deviceName"].as_str().unwrap_or_default().to_owned())
    }

    /// A ticket for one connection.
    pub async fn ticket(&self) -> Result<String, Refusal> {
        let path = self.path("adb/ticket");
        let reply = self.client.ask(Method::POST, &path, None).await?;
        let ticket = reply["ticket"].as_str();
        let ticket = ticket.ok_or_else(|| Refusal::Broken("the reply has no ticket".to_owned()))?;
        Ok(ticket.to_owned())
    }

    /// Opens a tunnel by a ticket. The gateway's own words are told where it does not open one, so the handshake is made by
    /// the client that makes the other requests.
    pub async fn open(&self, ticket: &str) -> Result<Socket, Refusal> {
        let key = generate_key();
        let request = self.client.request(Method::GET, &self.path("adb"))?;
        let request = request
            .query(&[("ticket", ticket)])
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key);
        let response = self.client.send(request).await?;
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
        let stream = response.upgrade().await;
        let stream = stream.map_err(|error| self.client.broken(&error))?;
        Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
    }

    /// Nothing came in time.
    pub fn silent(&self) -> Refusal {
        self.client.silent()
    }

    fn path(&self, path: &str) -> String {
        format!("devices/{}/{path}", self.device)
    }
}

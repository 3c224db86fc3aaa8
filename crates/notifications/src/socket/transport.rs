//! The WebSocket under Socket.IO, taken over from HTTP by ourselves so that it can be cut: the library closes a
//! connection only after all that waits in it, which a client that does not read never lets happen.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use http::{HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use platform::Problem;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

/// Cuts the connection that a request opened. It travels with the request.
#[derive(Clone, Debug, Default)]
pub struct Cut(pub CancellationToken);

/// What of this instance's connections carries Socket.IO by WebSocket.
#[derive(Clone, Debug, Default)]
pub struct Transports {
    tasks: TaskTracker,
    /// Those that took over a polling session, by its id.
    upgraded: Arc<Mutex<HashMap<String, CancellationToken>>>,
}

/// A connection that ends when it is cut, whatever waits in it.
struct Cuttable<S> {
    stream: S,
    cut: CancellationToken,
    /// Wakes a reader that waits while it is cut.
    waiting: Pin<Box<WaitForCancellationFutureOwned>>,
    _known: Option<Known>,
}

/// Forgets an upgraded session when its connection ends.
struct Known(Transports, String);

impl Transports {
    /// Answers a WebSocket handshake, and hands the connection on with the request that it came by.
    pub fn open<F>(&self, mut request: Request, hand_on: F) -> Response
    where
        F: FnOnce(Box<dyn Stream>, http::Request<()>) + Send + 'static,
    {
        let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
            return Problem::invalid_field("Upgrade", "this is a WebSocket of version 13")
                .into_response();
        };
        let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) else {
            return Problem::internal().into_response();
        };
        let cut = Cut::default();
        let known = session(&request).map(|session| {
            self.upgraded().insert(session.clone(), cut.0.clone());
            Known(self.clone(), session)
        });
        let upgrade = hyper::upgrade::on(&mut request);
        let (mut parts, _) = request.into_parts();
        parts.extensions.insert(cut.clone());
        self.tasks.spawn(async move {
            match upgrade.await {
                Ok(stream) => {
                    let waiting = Box::pin(cut.0.clone().cancelled_owned());
                    let stream = Cuttable {
                        stream: TokioIo::new(stream),
                        cut: cut.0,
                        waiting,
                        _known: known,
                    };
                    hand_on(Box::new(stream), http::Request::from_parts(parts, ()));
                }
                Err(error) => {
                    tracing::debug!("a client left while its connection was upgraded: {error}")
                }
            }
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        response
    }

    /// Cuts the connection of a session; `false` where it has none that lasts.
    pub fn cut(&self, session: &str, opened_by: Option<&Cut>) -> bool {
        let upgraded = self.upgraded().get(session).cloned();
        let cut = upgraded.or_else(|| opened_by.map(|cut| cut.0.clone()));
        cut.inspect(CancellationToken::cancel).is_some()
    }

    fn upgraded(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.upgraded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.0.upgraded().remove(&self.1);
    }
}

/// The polling session that a request wants to take over.
fn session(request: &Request) -> Option<String> {
    let query = request.uri().query()?;
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix("sid="))
        .map(str::to_owned)
}

/// What the library reads and writes.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl<S> Cuttable<S> {
    fn check(&self) -> io::Result<()> {
        if self.cut.is_cancelled() {
            Err(io::ErrorKind::ConnectionAborted.into())
        } else {
            Ok(())
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cuttable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.waiting.poll_unpin(cx).is_ready() {
            self.check()?;
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cuttable<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

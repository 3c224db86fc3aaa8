//! Server-Sent Events: the same frames for clients without a WebSocket. `Last-Event-ID` is the last `seq`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use http::{Extensions, HeaderMap, Uri};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use super::{Hello, Sockets, farewell};
use crate::hub::{Frame, Goodbye, Link, Live, MAX_WAITING};
use crate::{Notifications, Result};

/// Takes the socket out when its stream is dropped.
struct Out(Sockets, Arc<Live>);

impl Drop for Out {
    fn drop(&mut self) {
        self.0.hub.remove(&self.1);
    }
}

/// Streams the caller's notifications as Server-Sent Events; `Last-Event-ID` or `lastSeq` gives those missed first.
#[utoipa::path(get, path = "/notifications/stream", tag = "notifications",
    params(("lastSeq" = Option<i64>, Query,), ("token" = Option<String>, Query,), ("Last-Event-ID" = Option<String>, Header,)),
    responses((status = 200, content_type = "text/event-stream", body = String), (status = 401)))]
pub async fn stream_notifications(
    State(state): State<Notifications>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
) -> Result<Response> {
    let sockets = state.sockets();
    let hello = Hello::of(&uri, &headers)?;
    let identity = sockets.admit(&hello, &headers, &extensions).await?;
    let seen = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok()?.parse().ok());
    let (queue, frames) = mpsc::channel(MAX_WAITING);
    let live = sockets.hub.open(identity, Link::Queue(queue), "sse");
    let out = Out(sockets, live);
    let events = events(out, frames, seen.or(hello.last_seq));
    Ok(Sse::new(events)
        .keep_alive(KeepAlive::default())
        .into_response())
}

fn events(
    out: Out,
    frames: mpsc::Receiver<Arc<Frame>>,
    seen: Option<i64>,
) -> impl Stream<Item = std::result::Result<Event, Infallible>> {
    let (sockets, live) = (out.0.clone(), out.1.clone());
    let welcome = async move {
        let arrival = sockets.arrive(&live, seen).await;
        sockets
            .welcome(&live, &Uuid::new_v4().to_string(), arrival)
            .await;
    };
    let ended = out.1.ended.clone();
    let reason = out.1.clone();
    // The welcome runs beside the stream, inside it: it ends when the client goes.
    let welcome = futures::stream::once(welcome).filter_map(async |()| None);
    let carried = futures::stream::select(ReceiverStream::new(frames), welcome);
    let last =
        futures::stream::once(async move { last_word(&reason) }).filter_map(async |frame| frame);
    carried
        .take_until(ended.cancelled_owned())
        .chain(last)
        .map(move |frame| {
            let _ = &out;
            Ok(event(&frame))
        })
}

/// What was queued before may never have been read, so the time to come back is always said at the end.
fn last_word(live: &Live) -> Option<Arc<Frame>> {
    match live.goodbye()? {
        Goodbye::Leaving => Some(live.restart_notice()),
        _ => farewell(live)?.1,
    }
}

fn event(frame: &Frame) -> Event {
    let mut event = Event::default()
        .event(&*frame.event)
        .data(frame.data.to_string());
    if let Some(return_after) = frame.return_after {
        event = event.retry(return_after);
    }
    match frame.seq {
        Some(seq) => event.id(seq.to_string()),
        None => event,
    }
}

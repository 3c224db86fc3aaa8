//! What every service's HTTP side shares: extractors that refuse with problems, lists, and the layers around a router.

mod body;
mod client;
mod layers;
mod limit;
mod page;
mod params;
mod repair;
mod sibling;
mod trace;

pub use body::{FormOrJson, Json, JsonItems};
pub(crate) use body::{bytes, parse};
pub use client::{ClientAddress, RequestId, is_loopback, is_private_call};
pub use layers::{ADDRESSEE, DEADLINE, Served, loggable, service};
pub use limit::{ask_each as ask_limits, limit, tell as tell_limit};
pub use page::{Dual, Page, PageQuery, Slice, SliceQuery};
pub use params::{Path, Query};
pub use sibling::{Away, Sibling};
pub use trace::{TRACEPARENT, TRACESTATE, TraceId, TraceParent};

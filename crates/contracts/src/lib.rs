//! Data that crosses a service border: ids, money, times, events, service names and internal requests. No logic
//! beyond what keeps a value valid.

pub mod event;
pub mod id;
pub mod money;
pub mod service;
pub mod timestamp;

pub use event::{Event, EventBody};
pub use id::{
    ApiKeyId, AppId, BroadcastId, CreditHoldId, DeviceId, EventId, InvalidId, NotificationId,
    OrderId, PlanId, ReviewId, SessionId, SnapshotId, TaskId, TemplateId, TransactionId, UploadId,
    UserId,
};
pub use money::{InvalidMoney, Money};
pub use service::Service;
pub use timestamp::Timestamp;

//! The service as its clients meet it: through its URLs.

mod account;
mod api_key;
mod app;
mod attempt;
mod audit;
mod manage;
mod reset;
mod role;
mod session;

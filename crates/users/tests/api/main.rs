//! The service as its clients meet it: through its URLs.

mod account;
mod api_key;
mod app;
mod attempt;
mod audit;
mod captcha;

mod manage;
mod reset;
mod role;
mod session;
mod two_factor;

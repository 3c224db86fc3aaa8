//! Roles: what their users may do beyond what everybody may. A role carries permissions, which are the scopes of API keys; on a
//! route that wants one of these, its users are as good as admins (`platform::auth`).
//!
//! Tokens carry the names of roles, so who loses one is signed out. What a role permits is looked up, and may change at any time.

pub mod api;
pub mod assign;
pub mod db;
pub mod permission;

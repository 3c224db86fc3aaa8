//! Authorisation as extractors: a handler names who may call it, and cannot forget to ask.

use axum::extract::{FromRequestParts, MatchedPath};
use contracts::{ApiKeyId, Service, SessionId, UserId};
use http::request::Parts;
use http::{HeaderMap, HeaderName, header};
use tracing::warn;

use super::api_key::{KeyIdentity, Scope, Wanted, besides, wanted};
use super::vouch::Vouched;
use super::{Auth, AuthError, Claims, IDENTITY_HEADER, Identity, SERVICE_HEADER};
use crate::Problem;
use crate::http::is_loopback;
use crate::problem::causes;

/// The header that carries an API key.
pub const API_KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

/// A user who is signed in, or for whom a program calls with a key.
#[derive(Clone, Debug)]
pub struct CurrentUser {
    /// Who it is.
    pub id: UserId,
    /// The name, at the time of signing in.
    pub username: String,
    /// By what it is known.
    pub proof: Proof,
    /// Whether the owner rule does not bind on this call: for admins, and for who has a role with the permission that the route
    /// wants.
    pub is_admin: bool,
}

/// By what a user is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A token of this session.
    Session(SessionId),
    /// This API key.
    Key(ApiKeyId),
}

/// A signed-in user with the role `admin` or `super_admin`, or one whose roles permit what the route wants.
#[derive(Clone, Debug)]
pub struct Admin(pub CurrentUser);

/// Whoever may call a route that is looser in the sandbox.
#[derive(Clone, Debug)]
pub enum Caller {
    /// A signed-in user.
    User(CurrentUser),
    /// Another of our services.
    Service(Service),
    /// Nobody known, on this machine, with the sandbox open.
    Sandbox,
}

/// What a request bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Borne<'a> {
    /// Neither token nor key.
    Nothing,
    /// A token.
    Token(&'a str),
    /// An API key.
    Key(&'a str),
}

impl CurrentUser {
    /// The session in use.
    ///
    /// # Errors
    /// 403 where a program calls with a key.
    pub fn session(&self) -> Result<&SessionId, Problem> {
        match &self.proof {
            Proof::Session(session) => Ok(session),
            Proof::Key(_) => Err(Problem::forbidden(SIGN_IN)),
        }
    }

    /// The owner rule: the caller when nobody is named, else the named one if the caller is that user or an admin.
    ///
    /// # Errors
    /// 403 for somebody else's id.
    pub fn acting_for(&self, named: Option<UserId>) -> Result<UserId, Problem> {
        match named {
            None => Ok(self.id.clone()),
            Some(named) if named == self.id || self.is_admin => Ok(named),
            Some(_) => Err(Problem::forbidden("this belongs to another user")),
        }
    }

    /// Whether the caller may see an object of this owner; one that may not is told 404.
    pub fn may_see(&self, owner: &UserId) -> bool {
        self.is_admin || *owner == self.id
    }
}

impl From<Identity> for CurrentUser {
    fn from(identity: Identity) -> Self {
        Self {
            is_admin: identity.is_super_admin || administers(&identity.roles),
            id: identity.user_id,
            username: identity.username,
            proof: Proof::Session(identity.session_id),
        }
    }
}

impl From<KeyIdentity> for CurrentUser {
    fn from(identity: KeyIdentity) -> Self {
        Self {
            is_admin: administers(&identity.roles),
            id: identity.user_id,
            username: identity.username,
            proof: Proof::Key(identity.key_id),
        }
    }
}

const SIGN_IN: &str = "an API key cannot do this: sign in";

fn administers(roles: &[String]) -> bool {
    let mut roles = roles.iter();
    roles.any(|role| role == "admin" || role == "super_admin")
}

impl Caller {
    /// The name under which the caller's idempotency keys are kept.
    pub fn key_owner(&self) -> String {
        match self {
            Self::User(user) => format!("user:{}", user.id),
            Self::Service(service) => format!("service:{service}"),
            Self::Sandbox => "sandbox".to_owned(),
        }
    }

    /// Whom the call is for: the owner rule for a user; services and the sandbox name anybody.
    ///
    /// # Errors
    /// 403 for somebody else's id, 400 where nobody is named and nobody is signed in.
    pub fn acting_for(&self, named: Option<UserId>) -> Result<UserId, Problem> {
        match self {
            Self::User(user) => user.acting_for(named),
            Self::Service(_) | Self::Sandbox => {
                named.ok_or_else(|| Problem::invalid_field("userId", "is required"))
            }
        }
    }

    /// Whether the caller may see an object of this owner.
    pub fn may_see(&self, owner: &UserId) -> bool {
        match self {
            Self::User(user) => user.may_see(owner),
            Self::Service(_) | Self::Sandbox => true,
        }
    }

    /// The user, where one is signed in.
    pub fn user(&self) -> Option<&CurrentUser> {
        match self {
            Self::User(user) => Some(user),
            Self::Service(_) | Self::Sandbox => None,
        }
    }
}

impl Auth {
    /// Who a token speaks for, if its session lives.
    ///
    /// # Errors
    /// 401; 503 where no store can tell whether the session lives.
    pub async fn authenticate(&self, token: &str) -> Result<CurrentUser, Problem> {
        self.living(token).await.map(CurrentUser::from)
    }

    async fn living(&self, token: &str) -> Result<Identity, Problem> {
        let claims = self.verify(token)?;
        self.check_living(&claims.identity.session_id).await?;
        Ok(claims.identity)
    }

    /// The user of a call with a session, with what the roles permit on its route.
    async fn permitted(&self, identity: Identity, parts: &Parts) -> CurrentUser {
        let roles = identity.roles.clone();
        let mut user = CurrentUser::from(identity);
        if !user.is_admin
            && let Wanted::Scope(scope) = wanted(&parts.method, route(parts))
        {
            let besides = besides(&parts.method, route(parts));
            let wanted: Vec<Scope> = [Some(scope), besides].into_iter().flatten().collect();
            user.is_admin = self.0.roles.permit(&roles, &wanted).await;
        }
        user
    }

    /// What a token says, if it is one of ours and its time is not over.
    pub(super) fn verify(&self, token: &str) -> Result<Claims, AuthError> {
        Ok(self.tokens().verify(token, self.0.clock.now())?)
    }

    /// Refuses a session that has ended, and one of which no store can tell.
    pub(super) async fn check_living(&self, session: &SessionId) -> Result<(), AuthError> {
        let now = self.0.clock.now();
        match self.sessions().is_living(session, now).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(AuthError::Ended),
            Err(error) => {
                warn!("{}", causes(&error));
                Err(AuthError::Unchecked)
            }
        }
    }

    /// The user of a call: whom a gateway vouches for, else whose token or key it bears. Everybody who wants to know the
    /// user asks here, and here a key is held to its scopes.
    async fn user(&self, parts: &Parts) -> Result<Option<CurrentUser>, Problem> {
        let identity = match self.vouched(parts) {
            Some(Vouched::Session(identity)) => {
                return Ok(Some(self.permitted(identity, parts).await));
            }
            Some(Vouched::Key(identity)) => identity,
            None => match borne(&parts.headers)? {
                Borne::Token(token) => {
                    let identity = self.living(token).await?;
                    return Ok(Some(self.permitted(identity, parts).await));
                }
                Borne::Key(text) => {
                    let key = self.api_keys().find(text).await?;
                    key.used(self.0.clock.now());
                    key.identity().clone()
                }
                Borne::Nothing if parts.headers.contains_key(IDENTITY_HEADER) => {
                    return Err(Problem::unauthenticated(
                        "no gateway vouches for this call: sign in",
                    ));
                }
                Borne::Nothing => return Ok(None),
            },
        };
        hold_to_scopes(&identity, parts)?;
        Ok(Some(identity.into()))
    }

    /// Whether this call may use what the sandbox opens.
    pub fn opens_sandbox(&self, parts: &Parts) -> bool {
        self.sandbox() && is_loopback(&parts.headers, &parts.extensions)
    }
}

/// The path as the service has it, with the names of its parameters.
fn route(parts: &Parts) -> &str {
    let route = parts.extensions.get::<MatchedPath>();
    route.map_or(parts.uri.path(), MatchedPath::as_str)
}

/// Refuses a key whose scopes do not cover the route.
fn hold_to_scopes(identity: &KeyIdentity, parts: &Parts) -> Result<(), Problem> {
    let path = route(parts);
    let Wanted::Scope(scope) = wanted(&parts.method, path) else {
        return Err(Problem::forbidden(SIGN_IN));
    };
    let mut scopes = [Some(scope), besides(&parts.method, path)]
        .into_iter()
        .flatten();
    match scopes.find(|scope| !identity.scopes.permit(*scope)) {
        None => Ok(()),
        Some(scope) => Err(Problem::forbidden(format!(
            "the API key does not have the scope {scope}"
        ))),
    }
}

/// What a call bears.
///
/// # Errors
/// [`AuthError::Ambiguous`] where it bears both, [`AuthError::Malformed`] and [`AuthError::Key`] where it is no such thing.
pub fn borne(headers: &HeaderMap) -> Result<Borne<'_>, AuthError> {
    let mut keys = headers.get_all(API_KEY_HEADER).iter();
    let Some(key) = keys.next() else {
        return Ok(bearer(headers)?.map_or(Borne::Nothing, Borne::Token));
    };
    if headers.contains_key(header::AUTHORIZATION) {
        return Err(AuthError::Ambiguous);
    }
    let key = key.to_str().ok().filter(|_| keys.next().is_none());
    key.map(Borne::Key).ok_or(AuthError::Key)
}

/// The bearer token of a call.
///
/// # Errors
/// 401 where the header is there and is none.
pub fn bearer(headers: &HeaderMap) -> Result<Option<&str>, AuthError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    token.map(Some).ok_or(AuthError::Malformed)
}

fn auth(parts: &Parts) -> Result<Auth, Problem> {
    parts
        .extensions
        .get::<Auth>()
        .cloned()
        .ok_or_else(Problem::internal)
}

impl<S: Send + Sync> FromRequestParts<S> for CurrentUser {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let user = auth(parts)?.user(parts).await?;
        user.ok_or_else(|| {
            Problem::unauthenticated("sign in: a bearer token or an API key is required")
        })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let user = CurrentUser::from_request_parts(parts, state).await?;
        if user.is_admin {
            Ok(Self(user))
        } else {
            Err(Problem::forbidden(
                "the role admin is required, or one that permits this",
            ))
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let auth = auth(parts)?;
        if let Some(user) = auth.user(parts).await? {
            return Ok(Self::User(user));
        }
        if let Some(credential) = parts.headers.get(SERVICE_HEADER) {
            let service = credential.to_str().ok().and_then(|text| {
                auth.verify_credential(text, &parts.method, &parts.uri, auth.0.clock.now())
            });
            return service
                .map(Self::Service)
                .ok_or_else(|| Problem::unauthenticated("the service credential is not valid"));
        }
        if auth.opens_sandbox(parts) {
            return Ok(Self::Sandbox);
        }
        Err(Problem::unauthenticated(
            "sign in: a bearer token or an API key is required",
        ))
    }
}

//! Who is asking: a token that is not good is refused at the door, and for one that is good the door gives its word, by
//! which the service behind need not ask again.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use contracts::UserId;
use http::{HeaderValue, Method, Request};
use platform::auth::{AuthError, Edge, IDENTITY_HEADER, Known, Occasion};

use crate::front::metrics;
use crate::front::refusal::Refusal;
use crate::front::routes::Route;

/// Knows callers, and which routes want to know theirs.
#[derive(Clone)]
pub struct Identities {
    edge: Edge,
    guarded: Arc<matchit::Router<Vec<Method>>>,
}

/// What a request says of its caller: nothing, a token that is good, or one that is not.
#[derive(Debug)]
pub struct Presented(Result<Option<Arc<Known>>, AuthError>);

impl Identities {
    /// Guards routes such as `GET /devices/{id}`, as the services know them; on all others the service judges alone.
    ///
    /// # Errors
    /// Where a path is no route.
    pub fn new(
        edge: Edge,
        guarded: impl IntoIterator<Item = (Method, String)>,
    ) -> anyhow::Result<Self> {
        let mut paths: BTreeMap<String, Vec<Method>> = BTreeMap::new();
        for (method, path) in guarded {
            paths.entry(nameless(&path)).or_default().push(method);
        }
        let mut router = matchit::Router::new();
        for (path, methods) in paths {
            let inserted = router.insert(&path, methods);
            inserted.with_context(|| format!("guarding {path}"))?;
        }
        Ok(Self {
            edge,
            guarded: Arc::new(router),
        })
    }

    /// Looks at the token of a request. Nothing is asked of a store.
    pub fn present<B>(&self, request: &Request<B>) -> Presented {
        Presented(self.edge.present(request.headers()))
    }

    /// Refuses whom a guarded route would refuse for its token, and gives the door's word for whom it knows. Who bears
    /// no token is the service's to judge.
    pub async fn admit<B>(
        &self,
        presented: Presented,
        request: &mut Request<B>,
        route: &Route,
        id: &HeaderValue,
    ) -> Result<(), Refusal> {
        let word = match presented.0 {
            Ok(None) => return Ok(()),
            Ok(Some(known)) => {
                let occasion = Occasion {
                    method: request.method(),
                    target: &route.path,
                    request_id: id,
                };
                self.edge.vouch(&known, occasion).await
            }
            Err(error) => Err(error),
        };
        match word {
            Ok(Some(word)) => {
                request.headers_mut().insert(IDENTITY_HEADER, word);
                metrics::identity("vouched");
            }
            Ok(None) => metrics::identity("passed"),
            Err(error) if self.guards(request.method(), route.path.path()) => {
                metrics::identity("refused");
                return Err(Refusal::NotSignedIn(error));
            }
            Err(_) => metrics::identity("passed"),
        }
        Ok(())
    }

    fn guards(&self, method: &Method, path: &str) -> bool {
        let method = match *method {
            Method::HEAD => &Method::GET,
            _ => method,
        };
        let found = self.guarded.at(path);
        found.is_ok_and(|found| found.value.contains(method))
    }
}

impl Presented {
    /// The user, where the token is good: its requests are counted together.
    pub fn user(&self) -> Option<&UserId> {
        self.0.as_ref().ok()?.as_deref().map(Known::user)
    }
}

/// The path with its parameters named by their places: services name them as they like.
fn nameless(path: &str) -> String {
    let steps = path.split('/').enumerate();
    let steps = steps.map(|(place, step)| match step.starts_with('{') {
        true => format!("{{p{place}}}"),
        false => step.to_owned(),
    });
    steps.collect::<Vec<_>>().join("/")
}

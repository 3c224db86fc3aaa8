//! Who is asking: a token or an API key that is not good is refused at the door, and for one that is good the door gives its
//! word, by which the service behind need not ask again. The key itself goes no further then.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use http::{HeaderMap, HeaderValue, Method, Request};
use platform::auth::{
    API_KEY_HEADER, AuthError, Edge, IDENTITY_HEADER, Known, Occasion, Recalled, Subject,
};

use crate::front::metrics;
use crate::front::refusal::Refusal;
use crate::front::routes::Route;

/// Knows callers, and which routes want to know theirs.
#[derive(Clone)]
pub struct Identities {
    edge: Edge,
    guarded: Arc<matchit::Router<Vec<Method>>>,
}

/// What a request says of its caller: nothing, a token or a key that is good, or one that is not.
#[derive(Debug)]
pub struct Presented(Result<Option<Known>, AuthError>);

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

    /// Looks whether the caller of a request is known; `None` where it takes work to say.
    pub fn recall<B>(&self, request: &Request<B>) -> Option<Presented> {
        match self.edge.recall(request.headers()) {
            Recalled::Caller(caller) => Some(Presented(caller)),
            Recalled::Unknown => None,
        }
    }

    /// Verifies the token of a request, or looks its key up.
    pub async fn present<B>(&self, request: &Request<B>) -> Presented {
        Presented(self.edge.present(request.headers()).await)
    }

    /// Refuses whom a guarded route would refuse for its token or key, else says whom the door knows. Who bears neither is the
    /// service's to judge, and so is a key that nobody could look up.
    pub fn admit(
        &self,
        presented: Presented,
        method: &Method,
        route: &Route,
    ) -> Result<Option<Known>, Refusal> {
        presented
            .0
            .or_else(|error| self.refuse(error, method, route))
    }

    /// Gives the door's word for a caller, just before the request is passed on: a session may end while its body comes.
    pub async fn vouch(
        &self,
        known: &Known,
        method: &Method,
        route: &Route,
        id: &HeaderValue,
        headers: &mut HeaderMap,
    ) -> Result<(), Refusal> {
        let occasion = Occasion {
            method,
            target: &route.path,
            request_id: id,
        };
        match self.edge.vouch(known, occasion).await {
            Ok(Some(word)) => {
                headers.insert(IDENTITY_HEADER, word);
                headers.remove(API_KEY_HEADER);
                metrics::identity("vouched");
            }
            Ok(None) => metrics::identity("passed"),
            Err(error) => {
                self.refuse(error, method, route)?;
            }
        }
        Ok(())
    }

    fn refuse(
        &self,
        error: AuthError,
        method: &Method,
        route: &Route,
    ) -> Result<Option<Known>, Refusal> {
        if error != AuthError::KeyUnchecked && self.guards(method, route.path.path()) {
            metrics::identity("refused");
            return Err(Refusal::NotSignedIn(error));
        }
        metrics::identity("passed");
        Ok(None)
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
    /// Whose requests are counted together, where the token or key is good.
    pub fn subject(&self) -> Option<Subject<'_>> {
        self.0.as_ref().ok()?.as_ref().map(Known::subject)
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

//! The browser and the system that a session was opened with, as its `User-Agent` says.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use http::header;
use http::request::Parts;

/// Browser and system by the names that people know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agent {
    /// As in `Firefox`.
    pub browser: &'static str,
    /// As in `Windows`.
    pub os: &'static str,
}

/// The more special mark first: Edge and Opera also call themselves Chrome, and Chrome calls itself Safari.
const BROWSERS: [(&str, &str); 12] = [
    ("MicroMessenger", "WeChat"),
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("Firefox/", "Firefox"),
    ("FxiOS/", "Firefox"),
    ("CriOS/", "Chrome"),
    ("Chrome/", "Chrome"),
    ("Safari/", "Safari"),
    ("curl/", "curl"),
    ("okhttp/", "OkHttp"),
    ("node", "Node.js"),
    ("axios/", "Node.js"),
];
const SYSTEMS: [(&str, &str); 8] = [
    ("Windows", "Windows"),
    ("Android", "Android"),
    ("iPhone", "iOS"),
    ("iPad", "iOS"),
    ("Mac OS X", "macOS"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
    ("okhttp/", "Android"),
];

impl Agent {
    /// Reads the header's text.
    pub fn of(text: &str) -> Self {
        let first = |marks: &[(&str, &'static str)]| {
            let found = marks.iter().find(|(mark, _)| text.contains(mark));
            found.map_or("unknown", |(_, name)| name)
        };
        Self {
            browser: first(&BROWSERS),
            os: first(&SYSTEMS),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Agent {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let text = parts.headers.get(header::USER_AGENT);
        Ok(Self::of(
            text.and_then(|text| text.to_str().ok()).unwrap_or_default(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_agents_are_known_by_name() {
        let cases = [
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36 Edg/126.0",
                ("Edge", "Windows"),
            ),
            (
                "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Mobile Safari/537.36",
                ("Chrome", "Android"),
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Version/17.5 Safari/604.1",
                ("Safari", "iOS"),
            ),
            (
                "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0",
                ("Firefox", "Linux"),
            ),
            ("curl/8.5.0", ("curl", "unknown")),
            ("", ("unknown", "unknown")),
        ];
        for (text, (browser, os)) in cases {
            assert_eq!(Agent::of(text), Agent { browser, os }, "{text}");
        }
    }

    #[test]
    fn any_agent_has_names_of_ours() {
        const WORDS: [&str; 10] = [
            "Mozilla/5.0",
            "Edg",
            "Chrome/",
            "Safari/",
            "Windows",
            "Android",
            "Linux",
            "(",
            ";",
            "curl/",
        ];
        bolero::check!()
            .with_iterations(500)
            .with_max_len(24)
            .for_each(|bytes: &[u8]| {
                let agent = Agent::of(&testkit::any::text(bytes, &WORDS));
                let known = |name: &str, marks: &[(&str, &str)]| {
                    name == "unknown" || marks.iter().any(|(_, known)| *known == name)
                };
                assert!(known(agent.browser, &BROWSERS) && known(agent.os, &SYSTEMS));
            });
    }
}

//! W3C Trace Context: the id by which the lines of one request are found, whichever process wrote them.

use std::fmt;
use std::str::FromStr;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Carries a [`TraceParent`].
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What tracing systems say beside it; it means nothing without a valid parent.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The flags that have a meaning: sampled, and a random id.
const FLAGS: u8 = 0b11;
const SAMPLED: u8 = 0b01;

/// The id of a trace: 32 hexadecimal digits, not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

/// A place in a trace, as one process tells the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace: TraceId,
    parent: u64,
    flags: u8,
}

/// Why a text is no id or parent of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not as W3C Trace Context wants it")]
pub struct NoTrace;

impl TraceParent {
    /// Begins a trace.
    pub fn begin() -> Self {
        Self {
            trace: TraceId(rand::random::<u128>().max(1)),
            parent: span(),
            flags: SAMPLED,
        }
    }

    /// What a request says; nothing where it says nothing, or more than one thing, or none that is valid.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let mut told = headers.get_all(TRACEPARENT).iter();
        let (only, None) = (told.next()?, told.next()) else {
            return None;
        };
        only.to_str().ok()?.parse().ok()
    }

    /// The same trace, one step further.
    #[must_use]
    pub fn step(self) -> Self {
        Self {
            parent: span(),
            ..self
        }
    }

    /// As the next one is told.
    pub fn header(&self) -> HeaderValue {
        HeaderValue::try_from(self.to_string()).expect("hexadecimal digits are a header value")
    }
}

fn span() -> u64 {
    rand::random::<u64>().max(1)
}

/// Exactly so many hexadecimal digits in lower case.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let whole = text.len() == digits && text.bytes().all(is_hex);
    whole.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

impl FromStr for TraceParent {
    type Err = NoTrace;

    fn from_str(text: &str) -> Result<Self, NoTrace> {
        let mut parts = text.splitn(5, '-');
        let mut next = |digits| parts.next().and_then(|part| hex(part, digits));
        let (version, trace, parent, flags) = (next(2), next(32), next(16), next(2));
        let known = match version {
            // A later version may say more behind what we know.
            Some(version) => version != 0xff && (version != 0 || parts.next().is_none()),
            None => false,
        };
        match (trace, parent, flags) {
            (Some(trace @ 1..), Some(parent @ 1..), Some(flags)) if known => Ok(Self {
                trace: TraceId(trace),
                parent: u64::try_from(parent).map_err(|_| NoTrace)?,
                flags: u8::try_from(flags).map_err(|_| NoTrace)? & FLAGS,
            }),
            _ => Err(NoTrace),
        }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trace,
            parent,
            flags,
        } = self;
        write!(f, "00-{trace}-{parent:016x}-{flags:02x}")
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Serialize for TraceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TraceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
        let id = hex(&text, 32).filter(|id| *id > 0);
        id.map(Self).ok_or_else(|| de::Error::custom(NoTrace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_trace_is_gone_on_with_under_a_step_of_our_own() {
        let came: TraceParent = GOOD.parse().unwrap();
        assert_eq!(came.to_string(), GOOD);

        let ours = came.step();

        assert_eq!(ours.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let told = ours.to_string();
        assert_eq!((&told[..36], &told[52..]), (&GOOD[..36], &GOOD[52..]));
        assert_ne!(told[36..52], GOOD[36..52]);
        assert_eq!(told.parse(), Ok(ours));
    }

    #[test]
    fn what_is_not_as_the_specification_wants_it_is_none() {
        let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        for (text, good) in [
            (GOOD.to_owned(), true),
            (format!("cc-{trace}-{parent}-01"), true),
            (format!("cc-{trace}-{parent}-01-what-will-be"), true),
            (format!("00-{trace}-{parent}-01-more"), false),
            (format!("00-{trace}-{parent}-01-"), false),
            (format!("cc-{trace}-{parent}-01."), false),
            (format!("ff-{trace}-{parent}-01"), false),
            (GOOD.to_uppercase(), false),
            (format!("00-{}-{parent}-01", "0".repeat(32)), false),
            (format!("00-{trace}-{}-01", "0".repeat(16)), false),
            (format!("00-{trace}-{parent}"), false),
            (format!("00-{}-{parent}-01", &trace[1..]), false),
            (format!("00-{trace}-{parent}-0g"), false),
            (format!("00-+{}-{parent}-01", &trace[1..]), false),
            (String::new(), false),
        ] {
            assert_eq!(text.parse::<TraceParent>().is_ok(), good, "{text}");
        }
    }

    #[test]
    fn flags_without_a_meaning_are_not_passed_on() {
        let came: TraceParent = GOOD.replace("-01", "-ff").parse().unwrap();
        assert!(came.to_string().ends_with("-03"));
    }

    #[test]
    fn two_parents_are_none() {
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert!(TraceParent::read(&headers).is_some());
        headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert_eq!(TraceParent::read(&headers), None);
    }

    #[test]
    fn an_id_survives_json() {
        let id = TraceParent::begin().trace;
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<TraceId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<TraceId>("\"00\"").is_err());
    }

    #[test]
    fn any_text_is_a_trace_that_is_passed_on_as_it_came_or_none() {
        const WORDS: [&str; 10] = [
            "00",
            "-",
            "4bf92f3577b34da6a3ce929d0e0e4736",
            "00f067aa0ba902b7",
            "01",
            "ff",
            "cc",
            "0",
            "A",
            "-more",
        ];
        bolero::check!()
            .with_iterations(3_000)
            .with_max_len(10)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                if let Ok(parent) = text.parse::<TraceParent>() {
                    let told = parent.to_string();
                    assert_eq!(told.parse(), Ok(parent));
                    assert_eq!(told[2..53], text[2..53]);
                    assert!(text.starts_with("00") && text.len() == 55 || !text.starts_with("00"));
                }
            });
        bolero::check!()
            .with_type::<(u128, u64, u8)>()
            .with_iterations(1_000)
            .for_each(|(trace, parent, flags)| {
                let text = format!("00-{trace:032x}-{parent:016x}-{flags:02x}");
                let read = text.parse::<TraceParent>();
                assert_eq!(read.is_ok(), *trace > 0 && *parent > 0, "{text}");
                if let Ok(read) = read {
                    assert_eq!(read.to_string()[..53], text[..53]);
                    let json = serde_json::to_string(&read.trace).unwrap();
                    assert_eq!(serde_json::from_str::<TraceId>(&json).unwrap(), read.trace);
                }
            });
    }
}

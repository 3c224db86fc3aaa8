//! An upload: the file goes straight into the object store, the fields beside it are kept.

use axum::extract::Multipart;
use axum::extract::multipart::{Field, MultipartError};
use contracts::AppId;
use platform::Problem;
use platform::objects::{Objects, Writing, Written};
use platform::problem::{FieldFault, causes};
use serde::{Deserialize, Serialize};
use tokio::time::{Duration, timeout};
use tracing::warn;

use super::Category;
use super::manifest::begins_a_zip;
use crate::{Error, Result};

/// A client that sends nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);
const LONGEST_TEXT: usize = 8 << 10;

/// However slowly it comes: an upload that takes longer is given up.
const LONGEST: Duration = Duration::from_secs(2 * 3600);
const MOST_FIELDS: usize = 32;
/// Where packages lie in the object store.
pub const FOLDER: &str = "apps";

/// What has come of a form so far.
#[derive(Default)]
struct Received {
    fields: Fields,
    written: Option<Written>,
    faults: Vec<FieldFault>,
}

/// The fields of the form.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Fields {
    pub name: Option<String>,
    pub description: Option<String>,
    pub category: Category,
    pub tags: Vec<String>,
    pub package_name: Option<String>,
    pub version_name: Option<String>,
    pub version_code: Option<i64>,
}

impl Fields {
    /// Takes a field by its name in the form; one that means nothing is left alone.
    pub fn set(&mut self, name: &str, text: String, faults: &mut Vec<FieldFault>) {
        if text.is_empty() {
            return;
        }
        let bounded = |most: usize, faults: &mut Vec<FieldFault>| {
            if text.chars().count() > most {
                faults.push(fault(name, format!("is longer than {most} characters")));
            }
            Some(text.clone())
        };
        match name {
            "name" => self.name = bounded(100, faults),
            "description" => self.description = bounded(2000, faults),
            "packageName" => {
                if !is_package_name(&text) {
                    faults.push(fault(
                        "packageName",
                        "is not a package name such as com.example.app",
                    ));
                }
                self.package_name = Some(text);
            }
            "versionName" => self.version_name = bounded(100, faults),
            "versionCode" => match text.parse() {
                Ok(code) if code >= 0 => self.version_code = Some(code),
                _ => faults.push(fault("versionCode", "is not a whole number from 0")),
            },
            "category" => match serde_json::from_value(text.into()) {
                Ok(category) => self.category = category,
                Err(error) => faults.push(fault("category", error.to_string())),
            },
            "tags" => {
                self.tags = serde_json::from_str(&text).unwrap_or_else(|_| {
                    text.split(',')
                        .map(|tag| tag.trim().to_owned())
                        .filter(|tag| !tag.is_empty())
                        .collect()
                });
                if self.tags.len() > 20 || self.tags.iter().any(|tag| tag.chars().count() > 50) {
                    faults.push(fault(
                        "tags",
                        "are more than 20, or one is longer than 50 characters",
                    ));
                }
            }
            _ => {}
        }
    }
}

/// Reads the whole form; the package lies under the key then. A form that is refused leaves nothing behind.
pub async fn receive(
    objects: &Objects,
    id: &AppId,
    form: Multipart,
    limit: u64,
) -> Result<(Fields, Written, String)> {
    let key = key(id);
    let mut received = Received::default();
    let outcome = timeout(LONGEST, read(objects, &key, form, limit, &mut received))
        .await
        .unwrap_or_else(|_| {
            Err(Error::BrokenUpload {
                reason: format!("it took longer than {LONGEST:?}"),
            })
        });
    let Received {
        fields,
        written,
        mut faults,
    } = received;
    if written.is_none() {
        faults.push(fault("file", "is required"));
    }
    match (outcome, written) {
        (Ok(()), Some(written)) if faults.is_empty() => Ok((fields, written, key)),
        (outcome, written) => {
            if written.is_some() {
                discard(objects, &key).await;
            }
            outcome?;
            Err(Problem::validation(faults).into())
        }
    }
}

/// Where the package of a new app lies.
pub fn key(id: &AppId) -> String {
    format!("{FOLDER}/{id}.apk")
}

/// Deletes an object that is not wanted.
pub async fn discard(objects: &Objects, key: &str) {
    if let Err(error) = objects.delete(key).await {
        warn!(
            "the object {key}, which is not wanted, stays until the sweep: {}",
            causes(&error)
        );
    }
}

async fn read(
    objects: &Objects,
    key: &str,
    mut form: Multipart,
    limit: u64,
    received: &mut Received,
) -> Result<()> {
    let mut count = 0;
    while let Some(field) = next(form.next_field()).await? {
        count += 1;
        if count > MOST_FIELDS {
            return Err(Error::BrokenUpload {
                reason: format!("the form has more than {MOST_FIELDS} fields"),
            });
        }
        if field.name() != Some("file") {
            take_text(&mut received.fields, &mut received.faults, field).await?;
        } else if received.written.is_some() {
            return Err(Error::BrokenUpload {
                reason: "`file` was sent twice".to_owned(),
            });
        } else {
            let writing = objects.write(key).await?;
            received.written = Some(write(writing, field, limit).await?);
        }
    }
    Ok(())
}

async fn write(mut writing: Writing, mut field: Field<'_>, limit: u64) -> Result<Written> {
    let mut head = Vec::with_capacity(4);
    let outcome = async {
        while let Some(bytes) = next(field.chunk()).await? {
            // The first chunk may hold less than the mark of a ZIP archive.
            if head.len() < 4 {
                head.extend_from_slice(&bytes[..bytes.len().min(4 - head.len())]);
                if head.len() == 4 && !begins_a_zip(&head) {
                    return Err(Error::NotAPackage {
                        reason: "it is not a ZIP archive".to_owned(),
                    });
                }
            }
            if writing.size + bytes.len() as u64 > limit {
                return Err(Error::TooLarge { limit });
            }
            writing.push(&bytes).await?;
        }
        if head.len() < 4 {
            Err(Error::NotAPackage {
                reason: "it is empty".to_owned(),
            })
        } else {
            Ok(())
        }
    };
    match outcome.await {
        Ok(()) => Ok(writing.finish().await?),
        Err(error) => {
            writing.abort().await;
            Err(error)
        }
    }
}

async fn take_text(
    fields: &mut Fields,
    faults: &mut Vec<FieldFault>,
    mut field: Field<'_>,
) -> Result<()> {
    let name = field.name().unwrap_or_default().to_owned();
    let mut bytes = Vec::new();
    while let Some(chunk) = next(field.chunk()).await? {
        if bytes.len() + chunk.len() > LONGEST_TEXT {
            return Err(Problem::invalid_field("body", "a field of the form is too long").into());
        }
        bytes.extend_from_slice(&chunk);
    }
    let text = String::from_utf8(bytes)
        .ok()
        .filter(|text| !text.contains('\0'));
    let Some(text) = text.map(|text| text.trim().to_owned()) else {
        return Err(Problem::invalid_field("body", "a field of the form is not text").into());
    };
    fields.set(&name, text, faults);
    Ok(())
}

/// Dotted parts of letters, digits and underscores, each beginning with a letter (Android's application ids).
pub fn is_package_name(text: &str) -> bool {
    text.len() <= 200
        && text.contains('.')
        && text.split('.').all(|part| {
            part.starts_with(|first: char| first.is_ascii_alphabetic())
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        })
}

async fn next<T>(chunk: impl Future<Output = std::result::Result<T, MultipartError>>) -> Result<T> {
    match timeout(SILENCE, chunk).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::BrokenUpload {
            reason: error.body_text(),
        }),
        Err(_) => Err(Error::BrokenUpload {
            reason: "nothing came for 60 s".to_owned(),
        }),
    }
}

/// What is wrong with a field.
pub fn fault(field: &str, message: impl Into<String>) -> FieldFault {
    FieldFault {
        field: field.to_owned(),
        message: message.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_names_are_those_of_android() {
        for name in ["com.example.app", "a.b_1"] {
            assert!(is_package_name(name), "{name}");
        }
        for name in [
            "app",
            "com..x",
            "1.a",
            "com.1x",
            "com.ex ample",
            "com/x.y",
            "",
        ] {
            assert!(!is_package_name(name), "{name}");
        }
    }

    #[test]
    fn any_package_name_is_plain_enough_for_a_header_and_a_path() {
        const WORDS: [&str; 8] = ["com", ".", "example", "_", "1", "A", "..", "é"];
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(12)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                if is_package_name(&text) {
                    assert!(
                        !text.contains("..") && text.contains('.') && text.len() <= 200,
                        "{text}"
                    );
                    assert!(
                        text.bytes()
                            .all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(&byte)),
                        "{text}"
                    );
                }
            });
    }
}

//! An upload: the file goes straight into the object store, the fields beside it are kept.

use axum::extract::Multipart;
use axum::extract::multipart::{Field, MultipartError};
use contracts::AppId;
use platform::objects::{Objects, Writing, Written};
use platform::problem::FieldFault;
use platform::Problem;
use tokio::time::{Duration, timeout};

use super::Category;
use super::manifest::begins_a_zip;
use crate::{Error, Result};

/// A client that sends nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);
const LONGEST_TEXT: usize = 8 << 10;

/// The fields of the form.
#[derive(Debug, Default)]
pub struct Fields {
    pub name: Option<String>,
    pub description: Option<String>,
    pub category: Category,
    pub tags: Vec<String>,
    pub package_name: Option<String>,
    pub version_name: Option<String>,
    pub version_code: Option<i64>,
}

/// Reads the whole form; the package lies under `key` then.
pub async fn receive(objects: &Objects, id: &AppId, mut form: Multipart, limit: u64) -> Result<(Fields, Written, String)> {
    let key = format!("apps/{id}.apk");
    let (mut fields, mut written, mut faults) = (Fields::default(), None, Vec::new());
    let outcome = async {
        while let Some(field) = next(form.next_field()).await? {
            if field.name() == Some("file") {
                if written.is_some() {
                    faults.push(fault("file", "was sent twice"));
                    continue;
                }
                let writing = objects.write(&key).await?;
                written = Some(write(writing, field, limit).await?);
            } else {
                take_text(&mut fields, &mut faults, field).await?;
            }
        }
        Ok(())
    };
    let outcome: Result<()> = outcome.await;
    if written.is_none() {
        faults.push(fault("file", "is required"));
    }
    match (outcome, written) {
        (Ok(()), Some(written)) if faults.is_empty() => Ok((fields, written, key)),
        (outcome, _) => {
            objects.delete(&key).await?;
            outcome?;
            Err(Problem::validation(faults).into())
        }
    }
}

async fn write(mut writing: Writing, mut field: Field<'_>, limit: u64) -> Result<Written> {
    let mut first = true;
    let outcome = async {
        while let Some(bytes) = next(field.chunk()).await? {
            if first && !begins_a_zip(&bytes) {
                return Err(Error::NotAPackage { reason: "it is not a ZIP archive".to_owned() });
            }
            first = false;
            if writing.size + bytes.len() as u64 > limit {
                return Err(Error::TooLarge { limit });
            }
            writing.push(&bytes).await?;
        }
        if first { Err(Error::NotAPackage { reason: "it is empty".to_owned() }) } else { Ok(()) }
    };
    match outcome.await {
        Ok(()) => Ok(writing.finish().await?),
        Err(error) => {
            writing.abort().await;
            Err(error)
        }
    }
}

async fn take_text(fields: &mut Fields, faults: &mut Vec<FieldFault>, mut field: Field<'_>) -> Result<()> {
    let name = field.name().unwrap_or_default().to_owned();
    let mut bytes = Vec::new();
    while let Some(chunk) = next(field.chunk()).await? {
        if bytes.len() + chunk.len() > LONGEST_TEXT {
            faults.push(fault(&name, "is too long"));
            return Ok(());
        }
        bytes.extend_from_slice(&chunk);
    }
    let Ok(text) = String::from_utf8(bytes) else {
        faults.push(fault(&name, "is not text"));
        return Ok(());
    };
    let text = text.trim().to_owned();
    if text.is_empty() {
        return Ok(());
    }
    let bounded = |most: usize, faults: &mut Vec<FieldFault>| {
        if text.chars().count() > most {
            faults.push(fault(&name, format!("is longer than {most} characters")));
        }
        Some(text.clone())
    };
    match name.as_str() {
        "name" => fields.name = bounded(100, faults),
        "description" => fields.description = bounded(2000, faults),
        "packageName" => {
            if !is_package_name(&text) {
                faults.push(fault("packageName", "is not a package name such as com.example.app"));
            }
            fields.package_name = Some(text);
        }
        "versionName" => fields.version_name = bounded(100, faults),
        "versionCode" => match text.parse() {
            Ok(code) if code >= 0 => fields.version_code = Some(code),
            _ => faults.push(fault("versionCode", "is not a whole number from 0")),
        },
        "category" => match serde_json::from_value(text.into()) {
            Ok(category) => fields.category = category,
            Err(error) => faults.push(fault("category", error.to_string())),
        },
        "tags" => {
            fields.tags = serde_json::from_str(&text)
                .unwrap_or_else(|_| text.split(',').map(|tag| tag.trim().to_owned()).filter(|tag| !tag.is_empty()).collect());
            if fields.tags.len() > 20 || fields.tags.iter().any(|tag| tag.chars().count() > 50) {
                faults.push(fault("tags", "are more than 20, or one is longer than 50 characters"));
            }
        }
        _ => {}
    }
    Ok(())
}

/// Dotted parts of letters, digits and underscores, each beginning with a letter (Android's application ids).
pub fn is_package_name(text: &str) -> bool {
    text.len() <= 200
        && text.contains('.')
        && text.split('.').all(|part| {
            part.starts_with(|first: char| first.is_ascii_alphabetic())
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        })
}

async fn next<T>(chunk: impl Future<Output = std::result::Result<T, MultipartError>>) -> Result<T> {
    match timeout(SILENCE, chunk).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::BrokenUpload { reason: error.body_text() }),
        Err(_) => Err(Error::BrokenUpload { reason: "nothing came for 60 s".to_owned() }),
    }
}

fn fault(field: &str, message: impl Into<String>) -> FieldFault {
    FieldFault { field: field.to_owned(), message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_names_are_those_of_android() {
        for name in ["com.example.app", "a.b_1"] {
            assert!(is_package_name(name), "{name}");
        }
        for name in ["app", "com..x", "1.a", "com.1x", "com.ex ample", "com/x.y", ""] {
            assert!(!is_package_name(name), "{name}");
        }
    }
}

//! `Upload-Metadata`: pairs of a name and a text in Base64, separated by commas.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use platform::Problem;

use crate::app::upload::{Fields, fault};

/// The fields of an upload, as its form would have them; names that mean nothing to us are left alone.
///
/// # Errors
/// 400 with every field at fault.
pub fn read(header: &str) -> Result<Fields, Problem> {
    let mut fields = Fields::default();
    let mut faults = Vec::new();
    for pair in header.split(',').map(str::trim).filter(|it| !it.is_empty()) {
        let (name, text) = pair.split_once(' ').unwrap_or((pair, ""));
        let bytes = STANDARD.decode(text.trim()).ok();
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        match text.filter(|text| !text.contains('\0')) {
            Some(text) => fields.set(name, text.trim().to_owned(), &mut faults),
            None => faults.push(fault(
                "Upload-Metadata",
                format!("{name} is not text in Base64"),
            )),
        }
    }
    match faults.is_empty() {
        true => Ok(fields),
        false => Err(Problem::validation(faults)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_read_and_what_is_at_fault_is_named() {
        let fields = read("filename YS5hcGs=, name R2FtZQ==,description,versionCode MTI=").unwrap();
        assert_eq!(fields.name.as_deref(), Some("Game"));
        assert_eq!((fields.description, fields.version_code), (None, Some(12)));
        assert!(read("").is_ok());

        for (header, field) in [
            ("name not-base64!", "Upload-Metadata"),
            ("name /w==", "Upload-Metadata"),
            ("name AA==", "Upload-Metadata"),
            ("versionCode eA==", "versionCode"),
            ("packageName eA==", "packageName"),
        ] {
            let problem = read(header).unwrap_err();
            assert_eq!(problem.fields().collect::<Vec<_>>(), [field], "{header}");
        }
    }

    #[test]
    fn any_header_is_read_or_refused() {
        const WORDS: [&str; 10] = [
            "name",
            " ",
            ",",
            "R2FtZQ==",
            "=",
            "tags",
            "versionCode",
            "MTI=",
            "AA==",
            "packageName",
        ];
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(64)
            .for_each(|bytes: &[u8]| {
                if let Ok(fields) = read(&testkit::any::text(bytes, &WORDS)) {
                    let texts = [fields.name, fields.package_name, fields.version_name];
                    assert!(texts.iter().flatten().all(|text| !text.contains('\0')));
                }
            });
    }
}

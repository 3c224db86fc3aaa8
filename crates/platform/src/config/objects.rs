//! Where objects are kept.

use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::Env;

/// Where objects are kept.
#[derive(Clone, Debug)]
pub enum ObjectsAt {
    /// `OBJECTS_FOLDER`: a folder that every replica sees. Default `objects` below `CLOUDPHONE_HOME`.
    Folder(PathBuf),
    /// `OBJECTS_S3_BUCKET`: a bucket of S3, or of a server that speaks as S3 does; then the folder counts nothing.
    S3(Bucket),
}

/// A bucket, which must be there.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// `OBJECTS_S3_BUCKET`.
    pub name: String,
    /// `OBJECTS_S3_ENDPOINT`: `https://…`, or `http://…` inside a network that is trusted. Default: that of AWS.
    pub endpoint: Option<String>,
    /// `OBJECTS_S3_REGION`. Default us-east-1.
    pub region: String,
    /// `OBJECTS_S3_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `OBJECTS_S3_SECRET_ACCESS_KEY`.
    pub secret_access_key: SecretString,
}

impl ObjectsAt {
    /// Reads the settings; faults are collected in `env`.
    pub fn from_env(env: &mut Env, home: &Path) -> Self {
        let folder = env.text("OBJECTS_FOLDER");
        let bucket = env.text("OBJECTS_S3_BUCKET");
        let endpoint = env.text("OBJECTS_S3_ENDPOINT");
        let region = env.text("OBJECTS_S3_REGION");
        let access_key_id = env.text("OBJECTS_S3_ACCESS_KEY_ID");
        let secret_access_key = env.secret("OBJECTS_S3_SECRET_ACCESS_KEY", 1);
        let Some(name) = bucket else {
            let about_s3 = [
                ("OBJECTS_S3_ENDPOINT", endpoint.is_some()),
                ("OBJECTS_S3_REGION", region.is_some()),
                ("OBJECTS_S3_ACCESS_KEY_ID", access_key_id.is_some()),
                ("OBJECTS_S3_SECRET_ACCESS_KEY", secret_access_key.is_some()),
            ];
            for (name, _) in about_s3.into_iter().filter(|(_, is_set)| *is_set) {
                env.fault(name, "is of no use without OBJECTS_S3_BUCKET");
            }
            let folder = folder.map_or_else(|| home.join("objects"), PathBuf::from);
            return Self::Folder(folder);
        };
        let is_url = |url: &String| url.starts_with("https://") || url.starts_with("http://");
        if endpoint.as_ref().is_some_and(|url| !is_url(url)) {
            env.fault("OBJECTS_S3_ENDPOINT", "must begin with https:// or http://");
        }
        for (name, missing) in [
            ("OBJECTS_S3_ACCESS_KEY_ID", access_key_id.is_none()),
            ("OBJECTS_S3_SECRET_ACCESS_KEY", secret_access_key.is_none()),
        ] {
            if missing {
                env.fault(name, "is required with OBJECTS_S3_BUCKET");
            }
        }
        Self::S3(Bucket {
            name,
            endpoint,
            region: region.unwrap_or_else(|| "us-east-1".to_owned()),
            access_key_id: access_key_id.unwrap_or_default(),
            secret_access_key: secret_access_key.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_named_whole_or_not_at_all() {
        let mut env = Env::of([("OBJECTS_S3_BUCKET", "b"), ("OBJECTS_S3_ENDPOINT", "minio")]);
        ObjectsAt::from_env(&mut env, Path::new("home"));
        let text = env.finish().unwrap_err().to_string();
        for name in [
            "OBJECTS_S3_ENDPOINT",
            "OBJECTS_S3_ACCESS_KEY_ID",
            "OBJECTS_S3_SECRET_ACCESS_KEY",
        ] {
            assert!(text.contains(name), "{text}");
        }

        let mut env = Env::of([("OBJECTS_S3_REGION", "eu-1")]);
        let at = ObjectsAt::from_env(&mut env, Path::new("home"));
        assert!(matches!(at, ObjectsAt::Folder(folder) if folder == Path::new("home/objects")));
        assert!(
            env.finish()
                .unwrap_err()
                .to_string()
                .contains("OBJECTS_S3_REGION")
        );
    }
}

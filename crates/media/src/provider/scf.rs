//! A cloud function of Tencent Cloud, invoked and waited for. Requests are signed by TC3-HMAC-SHA256.

use chrono::DateTime;
use futures::future::BoxFuture;
use hmac::{Hmac, KeyInit, Mac};
use http::header;
use reqwest::{Client, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::http::{answer, client};
use super::{Function, Refusal};

const CONTENT_TYPE: &str = "application/json; charset=utf-8";
const SERVICE: &str = "scf";
const ACTION: &str = "Invoke";
const VERSION: &str = "2018-04-16";

/// Where a function is, and with which key it is invoked.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScfSettings {
    /// Names the key.
    pub secret_id: String,
    /// The key.
    pub secret_key: SecretString,
    /// As `ap-guangzhou`.
    pub region: String,
    /// The name of the function.
    pub function: String,
    /// Its namespace.
    #[serde(default = "namespace")]
    pub namespace: String,
    /// Where the cloud is called. Default `https://scf.tencentcloudapi.com`.
    #[serde(default = "endpoint", deserialize_with = "super::settings::url")]
    pub endpoint: Url,
}

/// A cloud function.
pub struct ScfFunction {
    client: Client,
    settings: ScfSettings,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Envelope {
    response: Inner,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inner {
    result: Option<Invoked>,
    error: Option<Failed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Invoked {
    #[serde(default)]
    ret_msg: String,
    #[serde(default)]
    invoke_result: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failed {
    code: String,
}

impl ScfFunction {
    /// Connects when it is used.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn new(settings: &ScfSettings) -> anyhow::Result<Self> {
        Ok(Self {
            client: client()?,
            settings: settings.clone(),
        })
    }
}

impl Function for ScfFunction {
    fn call(&self, body: Vec<u8>, now: i64) -> BoxFuture<'_, Result<Vec<u8>, Refusal>> {
        Box::pin(async move {
            let settings = &self.settings;
            let payload = json!({
                "FunctionName": settings.function,
                "Namespace": settings.namespace,
                "InvocationType": "RequestResponse",
                "ClientContext": String::from_utf8_lossy(&body),
            })
            .to_string();
            let request = Request {
                host: settings.endpoint.authority(),
                service: SERVICE,
                action: ACTION,
                payload: &payload,
                now,
            };
            let authorization = request.sign(&settings.secret_id, &settings.secret_key);
            let sent = self
                .client
                .post(settings.endpoint.clone())
                .header(header::CONTENT_TYPE, CONTENT_TYPE)
                .header(header::AUTHORIZATION, authorization)
                .header("X-TC-Action", ACTION)
                .header("X-TC-Version", VERSION)
                .header("X-TC-Region", &settings.region)
                .header("X-TC-Timestamp", now)
                .body(payload)
                .send()
                .await;
            read(&answer(sent).await?)
        })
    }
}

/// What the cloud says of an invocation. Refusals of the cloud itself come before the function ran.
fn read(body: &[u8]) -> Result<Vec<u8>, Refusal> {
    let strange = || Refusal::Unclear("the answer cannot be read".to_owned());
    let envelope: Envelope = serde_json::from_slice(body).map_err(|_| strange())?;
    match (envelope.response.error, envelope.response.result) {
        (Some(failed), _) if failed.code.starts_with("RequestLimitExceeded") => {
            Err(Refusal::NotTaken(failed.code))
        }
        (Some(failed), _) if failed.code.starts_with("InternalError") => {
            Err(Refusal::Unclear(failed.code))
        }
        (Some(failed), _) => Err(Refusal::Refused(failed.code)),
        (None, Some(invoked)) if invoked.invoke_result == 0 => Ok(invoked.ret_msg.into_bytes()),
        (None, Some(_)) => Err(Refusal::Unclear("the function broke off".to_owned())),
        (None, None) => Err(strange()),
    }
}

/// What is signed.
struct Request<'a> {
    host: &'a str,
    service: &'a str,
    action: &'a str,
    payload: &'a str,
    now: i64,
}

impl Request<'_> {
    /// The `Authorization` of a request at a time in seconds.
    fn sign(&self, id: &str, key: &SecretString) -> String {
        const SIGNED: &str = "content-type;host;x-tc-action";
        let date = DateTime::from_timestamp(self.now, 0).unwrap_or_default();
        let date = date.format("%Y-%m-%d").to_string();
        let scope = format!("{date}/{}/tc3_request", self.service);
        let canonical = format!(
            "POST\n/\n\ncontent-type:{CONTENT_TYPE}\nhost:{}\nx-tc-action:{}\n\n{SIGNED}\n{}",
            self.host,
            self.action.to_lowercase(),
            hex::encode(Sha256::digest(self.payload)),
        );
        let canonical = hex::encode(Sha256::digest(canonical));
        let text = format!("TC3-HMAC-SHA256\n{}\n{scope}\n{canonical}", self.now);
        let key = format!("TC3{}", key.expose_secret());
        let key = code(key.as_bytes(), &date);
        let key = code(&key, self.service);
        let key = code(&key, "tc3_request");
        let signature = hex::encode(code(&key, &text));
        format!(
            "TC3-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={SIGNED}, Signature={signature}"
        )
    }
}

fn code(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn namespace() -> String {
    "default".to_owned()
}

fn endpoint() -> Url {
    Url::parse("https://scf.tencentcloudapi.com").expect("it is an address")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_example_has_the_published_signature() {
        // The documentation masks its key, and computes with the mask.
        let key = "*".repeat(32);
        let request = Request {
            host: "cvm.tencentcloudapi.com",
            service: "cvm",
            action: "DescribeInstances",
            payload: r#"{"Limit": 1, "Filters": [{"Values": ["\u672a\u547d\u540d"], "Name": "instance-name"}]}"#,
            now: 1_551_113_065,
        };

        let id = format!("AKID{key}");

        assert_eq!(
            request.sign(&id, &key.into()),
            format!(
                "TC3-HMAC-SHA256 Credential={id}/2019-02-25/cvm/tc3_request, SignedHeaders=content-type;host;x-tc-action, \
                Signature=10b1a37a7301a02ca19a647ad722d5e43b4b3cff309d421d85b46093f6ab6c4f"
            )
        );
    }

    #[test]
    fn what_the_cloud_says_is_told_apart() {
        let says = |text: &str| read(text.as_bytes());

        let good = says(
            r#"{"Response":{"Result":{"RetMsg":"{\"id\":\"1\"}","InvokeResult":0},"RequestId":"r"}}"#,
        );
        assert_eq!(good.unwrap(), br#"{"id":"1"}"#);
        for (text, refusal) in [
            (
                r#"{"Response":{"Error":{"Code":"RequestLimitExceeded.Uin","Message":""}}}"#,
                "not taken",
            ),
            (
                r#"{"Response":{"Error":{"Code":"AuthFailure.SignatureFailure"}}}"#,
                "refused",
            ),
            (
                r#"{"Response":{"Error":{"Code":"InternalError.System"}}}"#,
                "unclear",
            ),
            (
                r#"{"Response":{"Result":{"RetMsg":"","InvokeResult":-1}}}"#,
                "unclear",
            ),
            (r#"{"Response":{}}"#, "unclear"),
            ("<html>", "unclear"),
        ] {
            assert!(
                says(text).unwrap_err().to_string().starts_with(refusal),
                "{text}"
            );
        }
    }
}

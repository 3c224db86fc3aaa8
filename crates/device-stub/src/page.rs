//! The WebRTC port: a page that names the device and its lease.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::device::Device;

const IDLE: Duration = Duration::from_secs(60);
/// The head of a request may be this long.
const LONGEST_HEAD: u64 = 8192;

/// Serves the requests of one connection.
pub async fn serve(device: Device, stream: TcpStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let head = timeout(IDLE, head(&mut stream)).await??;
        let Some(head) = head else { return Ok(()) };
        let (answer, stays) = device.work(head.len(), || respond(&device, &head));
        device.sends(answer.len());
        timeout(IDLE, stream.get_mut().write_all(&answer)).await??;
        if !stays {
            return stream.get_mut().shutdown().await;
        }
    }
}

/// The request line and the header lines, `None` at the end of the connection.
async fn head(stream: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut head = String::new();
    let mut limited = stream.take(LONGEST_HEAD);
    loop {
        let before = head.len();
        if limited.read_line(&mut head).await? == 0 {
            return if limited.limit() == 0 {
                Err(io::ErrorKind::InvalidData.into())
            } else {
                Ok(None)
            };
        }
        if head[before..].trim().is_empty() && before > 0 {
            return Ok(Some(head));
        }
    }
}

/// The response, and whether the connection stays open.
fn respond(device: &Device, head: &str) -> (Vec<u8>, bool) {
    let mut words = head.split_whitespace();
    let (method, target, version) = (words.next(), words.next(), words.next());
    let head = head.to_ascii_lowercase();
    // A body would have to be read: the connection ends instead.
    let has_body = head.contains("\ncontent-length:") || head.contains("\ntransfer-encoding:");
    let stays = version == Some("HTTP/1.1") && !has_body && !head.contains("\nconnection: close");

    let path = target.unwrap_or_default().split('?').next();
    let (status, body) = match (method, path) {
        (Some("GET" | "HEAD"), Some("/")) => ("200 OK", page(device)),
        (Some("GET" | "HEAD"), _) => ("404 Not Found", "not found\n".into()),
        _ => (
            "405 Method Not Allowed\r\nAllow: GET, HEAD",
            "method not allowed\n".into(),
        ),
    };
    let kind = if status.starts_with("200") {
        "text/html"
    } else {
        "text/plain"
    };
    let connection = if stays { "keep-alive" } else { "close" };
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {}\r\nCache-Control: no-store\r\nConnection: {connection}\r\n\r\n",
        body.len()
    );
    if method != Some("HEAD") {
        answer.push_str(&body);
    }
    (answer.into_bytes(), stays)
}

fn page(device: &Device) -> String {
    let profile = device.profile();
    let (name, model, version) = (
        escape(&profile.name),
        escape(&profile.model),
        escape(&profile.android_version),
    );
    let lease = if profile.lease.is_empty() {
        "none".into()
    } else {
        escape(&profile.lease)
    };
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{name}</title><h1>{name}</h1>\
         <dl><dt>Model<dd>{model}<dt>Android<dd>{version}<dt>Screen<dd>{}×{}<dt>Lease<dd id=\"lease\">{lease}</dl></html>\n",
        profile.width, profile.height
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceProfile;

    #[test]
    fn the_page_names_the_device_and_escapes_it() {
        let device = Device::new(DeviceProfile {
            name: "<b>".into(),
            lease: "u1".into(),
            ..DeviceProfile::default()
        });

        let (answer, stays) = respond(&device, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");

        let answer = String::from_utf8(answer).unwrap();
        assert!(stays && answer.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(answer.contains("<h1>&lt;b&gt;</h1>") && answer.contains(">u1</dl>"));
    }

    #[test]
    fn a_body_and_another_method_end_the_connection() {
        let device = Device::new(DeviceProfile::default());

        let (answer, stays) = respond(&device, "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n");

        assert!(!stays && answer.starts_with(b"HTTP/1.1 405"));
    }

    #[test]
    fn any_head_has_one_whole_answer() {
        const WORDS: [&str; 16] = [
            "GET",
            "HEAD",
            "POST",
            " ",
            " / ",
            "HTTP/1.1",
            "HTTP/1.0",
            "\r\n",
            "\n",
            "Connection: close",
            "Content-Length: 5",
            "transfer-encoding: chunked",
            "/?<script>",
            "http://a/",
            "\0",
            "é",
        ];
        let device = Device::new(DeviceProfile::default());
        bolero::check!()
            .with_iterations(1_000)
            .with_max_len(64)
            .for_each(|bytes: &[u8]| {
                let word = |byte: &u8| {
                    WORDS
                        .get(usize::from(*byte))
                        .map_or(char::from(*byte).to_string(), |word| (*word).into())
                };
                let head: String = bytes.iter().map(word).collect();
                let (answer, _) = respond(&device, &head);

                let answer = String::from_utf8(answer).unwrap();
                let (told, body) = answer.split_once("\r\n\r\n").unwrap();
                assert!(told.starts_with("HTTP/1.1 "));
                let length = told
                    .lines()
                    .find_map(|line| line.strip_prefix("Content-Length: "));
                let length: usize = length.unwrap().parse().unwrap();
                assert!(
                    body.len() == length
                        || body.is_empty() && head.trim_start().starts_with("HEAD")
                );
                assert!(!body.contains("<script>"));
            });
    }
}

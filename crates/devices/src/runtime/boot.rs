//! Whether Android has booted, as it says itself by ADB.

use std::time::Duration;

use tokio::time::Instant;

use super::Spec;
use crate::access::adb::{self, AdbError};
use crate::access::reach::dial;

/// How long one question may take: while it boots, Android accepts connections and says nothing.
const ASK: Duration = Duration::from_secs(5);
const QUESTION: &str = "getprop sys.boot_completed";
/// How much of the answer is read.
const ANSWER: usize = 64;

/// Asks a device whether it has booted. One that wants a key has come as far as can be seen.
pub async fn has_booted(spec: &Spec, until: Instant) -> bool {
    let until = until.min(Instant::now() + ASK);
    let Ok(stream) = dial(&spec.id, &spec.host, spec.ports.adb).await else {
        return false;
    };
    match adb::shell(stream, QUESTION, ANSWER, until).await {
        Ok(output) => output.stdout.trim_ascii() == b"1",
        Err(AdbError::WantsKey) => true,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::net::Ipv4Addr;

    use device_stub::{Message, command};
    use tokio::net::TcpListener;

    use super::*;
    use crate::runtime::tests::spec;

    /// A device that answers each question with the next of these.
    async fn device(answers: &[&'static str]) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut answers: VecDeque<&str> = answers.iter().copied().collect();
        #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
        tokio::spawn(async move {
            while let Some(answer) = answers.pop_front() {
                let (mut stream, _) = listener.accept().await.unwrap();
                Message::read(&mut stream).await.unwrap();
                let banner = match answer {
                    "key" => Message::new(command::AUTH, 1, 0, [0; 20]),
                    _ => Message::new(
                        command::CNXN,
                        0x0100_0001,
                        4096,
                        "device::features=shell_v2",
                    ),
                };
                banner.write(&mut stream).await.unwrap();
                let Ok(open) = Message::read(&mut stream).await else {
                    continue;
                };
                assert_eq!(&open.data[..], b"shell,v2,raw:getprop sys.boot_completed\0");
                let (length, text) = (answer.len() as u8, answer.as_bytes());
                let said = [&[1, length, 0, 0, 0], text].concat();
                for message in [
                    Message::new(command::OKAY, 7, 1, []),
                    Message::new(command::WRTE, 7, 1, said),
                    Message::new(command::CLSE, 7, 1, []),
                ] {
                    message.write(&mut stream).await.unwrap();
                }
            }
        });
        port
    }

    #[tokio::test]
    async fn it_has_booted_when_it_says_so() {
        let mut spec = spec();
        spec.host = "127.0.0.1".into();
        spec.ports.adb = device(&["\n", "0\n", "1\n", "key"]).await;
        let soon = || Instant::now() + Duration::from_secs(60);

        for booted in [false, false, true, true] {
            assert_eq!(has_booted(&spec, soon()).await, booted);
        }
        // Nobody listens any more.
        assert!(!has_booted(&spec, soon()).await);
    }
}

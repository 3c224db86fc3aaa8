//! The device from outside: with a client of our own, and with the real `adb` where it is installed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::time::Duration;

use device_stub::{Bound, Device, DeviceProfile, Message, PortKind, Ports, command};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ANY: Ports = Ports {
    adb: 0,
    webrtc: 0,
    scrcpy: 0,
};

/// Runs a part of a test beside a device.
async fn beside<F: AsyncFnOnce(Ports)>(device: &Device, test: F) {
    let bound: Bound = device.clone().bind(LOOPBACK, ANY).await.unwrap();
    let ports = bound.ports().unwrap();
    let stop = CancellationToken::new();
    let test = async {
        timeout(Duration::from_secs(60), test(ports))
            .await
            .expect("the test hangs");
        stop.cancel();
    };
    tokio::join!(bound.run(stop.clone()), test);
}

fn phone() -> Device {
    Device::new(DeviceProfile {
        name: "phone-1".into(),
        lease: "order-7".into(),
        model: "Pixel 9".into(),
        ..DeviceProfile::default()
    })
}

/// The host's side of ADB, one stream at a time.
struct Adb(TcpStream);

impl Adb {
    async fn connect(port: u16) -> Self {
        let mut adb = Self(TcpStream::connect((LOOPBACK, port)).await.unwrap());
        let greeting = Message::new(
            command::CNXN,
            0x0100_0001,
            256 * 1024,
            *b"host::features=shell_v2",
        );
        greeting.write(&mut adb.0).await.unwrap();
        let answer = adb.hear().await;
        assert_eq!(answer.command, command::CNXN);
        assert!(
            String::from_utf8(answer.data)
                .unwrap()
                .starts_with("device::")
        );
        adb
    }

    async fn hear(&mut self) -> Message {
        Message::read(&mut self.0).await.unwrap()
    }

    /// Opens a service, says something, and hears everything until it closes.
    async fn ask(&mut self, service: &str, input: &[u8]) -> Vec<u8> {
        Message::new(command::OPEN, 9, 0, format!("{service}\0"))
            .write(&mut self.0)
            .await
            .unwrap();
        let opened = self.hear().await;
        assert_eq!((opened.command, opened.arg1), (command::OKAY, 9));
        let theirs = opened.arg0;
        let mut pieces = input.chunks(60_000);
        if let Some(piece) = pieces.next() {
            Message::new(command::WRTE, 9, theirs, piece)
                .write(&mut self.0)
                .await
                .unwrap();
        }
        let mut said = Vec::new();
        loop {
            let message = self.hear().await;
            match message.command {
                command::WRTE => {
                    said.extend(message.data);
                    Message::new(command::OKAY, 9, theirs, [])
                        .write(&mut self.0)
                        .await
                        .unwrap();
                }
                command::OKAY => {
                    if let Some(piece) = pieces.next() {
                        Message::new(command::WRTE, 9, theirs, piece)
                            .write(&mut self.0)
                            .await
                            .unwrap();
                    }
                }
                command::CLSE => return said,
                _ => panic!("{message:?}"),
            }
        }
    }
}

fn request(name: &[u8; 4], number: usize, content: &[u8]) -> Vec<u8> {
    [name, &(number as u32).to_le_bytes()[..], content].concat()
}

#[tokio::test]
async fn a_client_asks_installs_and_is_told_the_status() {
    let device = phone();
    beside(&device, async |ports| {
        let mut adb = Adb::connect(ports.adb).await;
        assert_eq!(
            adb.ask("shell:getprop ro.product.model", &[]).await,
            b"Pixel 9\n"
        );
        assert_eq!(
            adb.ask("shell,v2,raw:exit 3", &[]).await,
            [3, 1, 0, 0, 0, 3]
        );
        assert!(
            adb.ask("exec:screencap -p", &[])
                .await
                .starts_with(b"\x89PNG")
        );

        let path = b"/data/local/tmp/com.example.app.apk,33188";
        let app = [b"PK".to_vec(), vec![7; 150_000]].concat();
        let mut push = request(b"SEND", path.len(), path);
        for block in app.chunks(64 * 1024) {
            push.extend(request(b"DATA", block.len(), block));
        }
        push.extend(request(b"DONE", 0, &[]));
        push.extend(request(b"QUIT", 0, &[]));
        assert_eq!(adb.ask("sync:", &push).await, request(b"OKAY", 0, &[]));
        let installed = adb
            .ask(
                "shell:pm install -r /data/local/tmp/com.example.app.apk",
                &[],
            )
            .await;

        assert_eq!(installed, b"Success\n");
        assert_eq!(device.packages()["com.example.app"].bytes, 150_002);
        let typed = adb.ask("shell:", b"echo one\nexit\n").await;
        assert_eq!(
            String::from_utf8(typed).unwrap(),
            "phone-1:/ $ one\nphone-1:/ $ "
        );
    })
    .await;
}

#[tokio::test]
async fn many_streams_are_refused_and_rubbish_ends_the_connection() {
    beside(&phone(), async |ports| {
        let mut adb = Adb::connect(ports.adb).await;
        for id in 1..=100 {
            Message::new(command::OPEN, id, 0, *b"sync:\0")
                .write(&mut adb.0)
                .await
                .unwrap();
        }
        let mut refused = 0;
        for _ in 1..=100 {
            refused += u32::from(adb.hear().await.command == command::CLSE);
        }
        assert_eq!(refused, 36);

        adb.0.write_all(&[0xff; 24]).await.unwrap();
        assert_eq!(adb.0.read(&mut [0; 8]).await.unwrap_or(0), 0);
    })
    .await;
}

#[tokio::test]
async fn the_page_and_the_greeting_name_the_device() {
    beside(&phone(), async |ports| {
        let mut page = TcpStream::connect((LOOPBACK, ports.webrtc)).await.unwrap();
        page.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        page.read_to_string(&mut text).await.unwrap();
        assert!(
            text.contains("phone-1") && text.contains("order-7"),
            "{text}"
        );

        let mut scrcpy = TcpStream::connect((LOOPBACK, ports.scrcpy)).await.unwrap();
        let mut greeting = [1; 64];
        scrcpy.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting[..8], b"phone-1\0");
    })
    .await;
}

#[tokio::test]
async fn a_connection_too_many_is_closed() {
    beside(&phone(), async |ports| {
        let mut open = Vec::new();
        for _ in 0..64 {
            let mut stream = TcpStream::connect((LOOPBACK, ports.scrcpy)).await.unwrap();
            stream.read_exact(&mut [0; 64]).await.unwrap();
            open.push(stream);
        }
        let mut one_more = TcpStream::connect((LOOPBACK, ports.scrcpy)).await.unwrap();
        assert_eq!(one_more.read(&mut [0; 64]).await.unwrap_or(0), 0);
    })
    .await;
}

#[tokio::test]
async fn a_taken_port_is_named_and_the_others_are_given_back() {
    let taken = std::net::TcpListener::bind((LOOPBACK, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();

    let error = phone()
        .bind(
            LOOPBACK,
            Ports {
                webrtc: port,
                ..ANY
            },
        )
        .await
        .err()
        .unwrap();

    assert_eq!((error.kind, error.port), (PortKind::WebRtc, port));
    assert_eq!(error.source.kind(), std::io::ErrorKind::AddrInUse);
}

/// Needs `adb` (Debian: `apt-get install adb`); without it there is nothing to compare with.
#[tokio::test]
async fn the_real_adb_connects_asks_and_installs() {
    if std::process::Command::new("adb")
        .arg("version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        return;
    }
    let device = phone();
    beside(&device, async |ports| {
        let folder = tempfile::tempdir().unwrap();
        let app = folder.path().join("com.example.real.apk");
        std::fs::write(&app, [b"PK".to_vec(), vec![1; 200_000]].concat()).unwrap();
        let server = std::net::TcpListener::bind((LOOPBACK, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
            .to_string();
        let serial = format!("127.0.0.1:{}", ports.adb);
        let adb = async |args: &[&str]| {
            let mut command = tokio::process::Command::new("adb");
            command
                .args(["-P", &server])
                .args(args)
                .env("HOME", folder.path())
                .stdin(Stdio::null());
            let output = command.output().await.unwrap();
            let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat())
                .into_owned();
            (said, output.status.code())
        };

        let (said, _) = adb(&["connect", &serial]).await;
        assert!(said.contains("connected to"), "{said}");
        let model = adb(&["-s", &serial, "shell", "getprop", "ro.product.model"]).await;
        let status = adb(&["-s", &serial, "shell", "exit", "5"]).await.1;
        let installed = adb(&["-s", &serial, "install", app.to_str().unwrap()]).await;
        let screen = adb(&["-s", &serial, "exec-out", "screencap", "-p"]).await.0;
        adb(&["kill-server"]).await;

        assert_eq!(model.0.trim(), "Pixel 9");
        assert_eq!(status, Some(5));
        assert!(
            installed.0.contains("Success") && installed.1 == Some(0),
            "{installed:?}"
        );
        assert_eq!(device.packages()["com.example.real"].bytes, 200_002);
        assert!(screen.contains("PNG"));
    })
    .await;
}

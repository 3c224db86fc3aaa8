//! As much of an ADB client as it takes to install an app and to ask which there are.

use std::net::IpAddr;

use device_stub::{Message, command};
use tokio::net::TcpStream;

/// A connection to a device.
pub struct Adb(TcpStream);

impl Adb {
    pub async fn connect(address: IpAddr, port: u16) -> Self {
        let mut adb = Self(TcpStream::connect((address, port)).await.unwrap());
        let features = *b"host::features=shell_v2";
        let greeting = Message::new(command::CNXN, 0x0100_0001, 256 * 1024, features);
        greeting.write(&mut adb.0).await.unwrap();
        let answer = Message::read(&mut adb.0).await.unwrap();
        assert_eq!(answer.command, command::CNXN);
        adb
    }

    /// Installs an app of this name.
    pub async fn install(&mut self, package: &str) {
        let path = format!("/data/local/tmp/{package}.apk,33188");
        let push = [
            request(b"SEND", path.len(), path.as_bytes()),
            request(b"DATA", 4, b"PK\x03\x04"),
            request(b"DONE", 0, &[]),
            request(b"QUIT", 0, &[]),
        ];
        assert_eq!(
            self.ask("sync:", &push.concat()).await,
            request(b"OKAY", 0, &[])
        );
        let install = format!("shell:pm install -r /data/local/tmp/{package}.apk");
        assert_eq!(self.ask(&install, &[]).await, b"Success\n");
    }

    /// The names of the apps that are installed.
    pub async fn packages(&mut self) -> Vec<String> {
        let said = self.ask("shell:pm list packages", &[]).await;
        let said = String::from_utf8(said).unwrap();
        let names = said
            .lines()
            .filter_map(|line| line.strip_prefix("package:"));
        names.map(str::to_owned).collect()
    }

    async fn ask(&mut self, service: &str, input: &[u8]) -> Vec<u8> {
        let opening = Message::new(command::OPEN, 9, 0, format!("{service}\0"));
        opening.write(&mut self.0).await.unwrap();
        let opened = Message::read(&mut self.0).await.unwrap();
        assert_eq!((opened.command, opened.arg1), (command::OKAY, 9));
        let theirs = opened.arg0;
        if !input.is_empty() {
            let piece = Message::new(command::WRTE, 9, theirs, input);
            piece.write(&mut self.0).await.unwrap();
        }
        let mut said = Vec::new();
        loop {
            let message = Message::read(&mut self.0).await.unwrap();
            match message.command {
                command::WRTE => {
                    said.extend(message.data);
                    let okay = Message::new(command::OKAY, 9, theirs, []);
                    okay.write(&mut self.0).await.unwrap();
                }
                command::OKAY => {}
                command::CLSE => return said,
                _ => panic!("{message:?}"),
            }
        }
    }
}

fn request(name: &[u8; 4], number: usize, content: &[u8]) -> Vec<u8> {
    [name, &(number as u32).to_le_bytes()[..], content].concat()
}

/// The apps on a device that listens on this port.
pub async fn packages(address: IpAddr, port: u16) -> Vec<String> {
    Adb::connect(address, port).await.packages().await
}

/// Installs an app on the device that listens on this port.
pub async fn install(address: IpAddr, port: u16, package: &str) {
    Adb::connect(address, port).await.install(package).await;
}

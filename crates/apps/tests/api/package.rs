//! Android packages made by hand: an archive of stored entries, and a manifest in Android's binary XML.

/// An archive of stored entries.
pub fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in entries {
        let offset = u32_of(file.len());
        // Version, flags, method, time, date, CRC, packed and unpacked size, lengths of name and extra field.
        let mut common = words(&[20, 0, 0, 0, 0x21]);
        common.extend(longs(&[
            crc(content),
            u32_of(content.len()),
            u32_of(content.len()),
        ]));
        common.extend(words(&[u16_of(name.len()), 0]));
        file.extend(b"PK\x03\x04");
        file.extend(&common);
        file.extend(name.bytes());
        file.extend(*content);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend(words(&[0, 0, 0]));
        directory.extend(longs(&[0, offset]));
        directory.extend(name.bytes());
    }
    let start = u32_of(file.len());
    file.extend(&directory);
    file.extend(b"PK\x05\x06");
    file.extend(words(&[0, 0, u16_of(entries.len()), u16_of(entries.len())]));
    file.extend(longs(&[u32_of(directory.len()), start]));
    file.extend(words(&[0]));
    file
}

/// A package that says its name and version.
pub fn package(name: &str, version: &str, code: u32) -> Vec<u8> {
    archive(&[
        ("AndroidManifest.xml", &manifest(name, version, code)),
        ("classes.dex", &[7; 3000]),
    ])
}

/// A package with a manifest that nobody can read.
pub fn opaque(filling: u8) -> Vec<u8> {
    archive(&[
        ("AndroidManifest.xml", b"<manifest/>"),
        ("classes.dex", &[filling; 100]),
    ])
}

fn manifest(package: &str, version: &str, code: u32) -> Vec<u8> {
    const NONE: u32 = u32::MAX;
    const ANDROID: u32 = 3;
    let space = "http://schemas.android.com/apk/res/android";
    let texts = [
        "versionCode",
        "versionName",
        "package",
        space,
        "android",
        "manifest",
        package,
        version,
    ];
    let mut body = pool(&texts);
    // The first two names are attributes of Android's, by these numbers.
    body.extend(chunk(0x0180, 8, &longs(&[0x0101_021b, 0x0101_021c])));
    body.extend(chunk(0x0100, 16, &longs(&[1, NONE, 4, ANDROID])));
    let mut start = longs(&[1, NONE, NONE, 5]);
    start.extend(words(&[20, 20, 3, 0, 0, 0]));
    for [space, name, raw, kind, value] in [
        [ANDROID, 0, NONE, 0x10, code],
        [ANDROID, 1, 7, 3, 7],
        [NONE, 2, 6, 3, 6],
    ] {
        start.extend(longs(&[space, name, raw, 8 | kind << 24, value]));
    }
    body.extend(chunk(0x0102, 16, &start));
    body.extend(chunk(0x0103, 16, &longs(&[1, NONE, NONE, 5])));
    body.extend(chunk(0x0101, 16, &longs(&[1, NONE, 4, ANDROID])));
    chunk(0x0003, 8, &body)
}

fn pool(texts: &[&str]) -> Vec<u8> {
    let (mut offsets, mut data) = (Vec::new(), Vec::new());
    for text in texts {
        offsets.push(u32_of(data.len()));
        let units: Vec<u16> = text.encode_utf16().collect();
        data.extend(words(&[u16_of(units.len())]));
        data.extend(words(&units));
        data.extend(words(&[0]));
    }
    data.resize(data.len().next_multiple_of(4), 0);
    let start = 28 + 4 * u32_of(texts.len());
    let mut body = longs(&[u32_of(texts.len()), 0, 0, start, 0]);
    body.extend(longs(&offsets));
    body.extend(data);
    chunk(0x0001, 28, &body)
}

fn chunk(kind: u16, header: u16, body: &[u8]) -> Vec<u8> {
    let mut chunk = words(&[kind, header]);
    chunk.extend(longs(&[u32_of(body.len()) + 8]));
    chunk.extend(body);
    chunk
}

fn words(values: &[u16]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn longs(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn u32_of(value: usize) -> u32 {
    value.try_into().unwrap()
}

fn u16_of(value: usize) -> u16 {
    value.try_into().unwrap()
}

fn crc(bytes: &[u8]) -> u32 {
    let fold = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        })
    };
    !bytes.iter().fold(u32::MAX, fold)
}

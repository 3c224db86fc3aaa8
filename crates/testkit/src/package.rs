//! Android packages made by hand: an archive of stored entries, and a manifest in Android's binary XML.

use std::collections::BTreeSet;

/// An archive of stored entries.
pub fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let stored = entries
        .iter()
        .map(|(name, content)| (*name, *content, None));
    archive_of(&stored.collect::<Vec<_>>())
}

/// An archive of entries that are stored, or deflated and said to have so many bytes when they are unpacked.
pub fn archive_of(entries: &[(&str, &[u8], Option<usize>)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, content, unpacked) in entries {
        let method = if unpacked.is_some() { 8 } else { 0 };
        let offset = u32_of(file.len());
        // Version, flags, method, time, date, CRC, packed and unpacked size, lengths of name and extra field.
        let mut common = words(&[20, 0, method, 0, 0x21]);
        common.extend(longs(&[
            crc(content),
            u32_of(content.len()),
            u32_of(unpacked.unwrap_or(content.len())),
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

/// A package whose icon and label are resources, with these entries beside its manifest.
pub fn illustrated(name: &str, [icon, label]: [u32; 2], entries: &[(&str, &[u8])]) -> Vec<u8> {
    let stored = entries
        .iter()
        .map(|(name, content)| (*name, *content, None));
    illustrated_of(name, [icon, label], &stored.collect::<Vec<_>>())
}

/// The same with entries as for [`archive_of`].
pub fn illustrated_of(
    name: &str,
    shown: [u32; 2],
    entries: &[(&str, &[u8], Option<usize>)],
) -> Vec<u8> {
    let manifest = manifest_with(name, ("1", 1), Some(shown));
    let mut all = vec![("AndroidManifest.xml", manifest.as_slice(), None)];
    all.extend(entries);
    archive_of(&all)
}

/// The number of a resource of [`resources`].
pub const fn resource(entry: u32) -> u32 {
    0x7f01_0000 | entry
}

/// What a resource of [`resources`] is.
#[derive(Clone, Copy)]
pub enum Is {
    /// This text.
    Text(&'static str),
    /// What that resource is.
    Like(u32),
}

/// A `resources.arsc`: each resource by its number, the density of screens that it is for, 0 for all, and what it is.
pub fn resources(values: &[(u32, u16, Is)]) -> Vec<u8> {
    let texts: Vec<&str> = values
        .iter()
        .filter_map(|(_, _, is)| match is {
            Is::Text(text) => Some(*text),
            Is::Like(_) => None,
        })
        .collect();
    let count = values
        .iter()
        .map(|(entry, ..)| entry + 1)
        .max()
        .unwrap_or(0);
    let densities: BTreeSet<u16> = values.iter().map(|(_, density, _)| *density).collect();
    let mut chunks = Vec::new();
    for wanted in densities {
        let (mut offsets, mut entries) = (Vec::new(), Vec::new());
        for number in 0..count {
            let found = values
                .iter()
                .find(|(entry, density, _)| (*entry, *density) == (number, wanted));
            let Some((.., is)) = found else {
                offsets.push(u32::MAX);
                continue;
            };
            offsets.push(u32_of(entries.len()));
            let (kind, value) = match is {
                Is::Text(text) => (
                    3,
                    texts.iter().position(|one| one == text).unwrap_or_default(),
                ),
                Is::Like(entry) => (1, resource(*entry) as usize),
            };
            entries.extend(words(&[8, 0]));
            entries.extend(longs(&[0, 8 | kind << 24, u32_of(value)]));
        }
        let mut config = longs(&[64, 0, 0, u32::from(wanted) << 16]);
        config.resize(64, 0);
        let mut body = longs(&[1, count, 20 + 64 + 4 * count]);
        body.extend(config);
        body.extend(longs(&offsets));
        body.extend(entries);
        chunks.extend(chunk(0x0201, 84, &body));
    }
    let (kinds, keys) = (pool(&["mipmap"]), pool(&["ic_launcher"]));
    let mut package = longs(&[0x7f]);
    package.resize(package.len() + 256, 0);
    package.extend(longs(&[288, 1, 288 + u32_of(kinds.len()), 1, 0]));
    package.extend(kinds);
    package.extend(keys);
    package.extend(chunks);
    let mut table = longs(&[1]);
    table.extend(pool(&texts));
    table.extend(chunk(0x0200, 288, &package));
    chunk(0x0002, 12, &table)
}

fn manifest(package: &str, version: &str, code: u32) -> Vec<u8> {
    manifest_with(package, (version, code), None)
}

fn manifest_with(package: &str, (version, code): (&str, u32), shown: Option<[u32; 2]>) -> Vec<u8> {
    const NONE: u32 = u32::MAX;
    const ANDROID: u32 = 5;
    let space = "http://schemas.android.com/apk/res/android";
    let texts = [
        "versionCode",
        "versionName",
        "icon",
        "label",
        "package",
        space,
        "android",
        "manifest",
        "application",
        package,
        version,
    ];
    let start = |element: u32, attributes: &[[u32; 5]]| {
        let mut start = longs(&[1, NONE, NONE, element]);
        start.extend(words(&[20, 20, u16_of(attributes.len()), 0, 0, 0]));
        for [space, name, raw, kind, value] in attributes {
            start.extend(longs(&[*space, *name, *raw, 8 | kind << 24, *value]));
        }
        chunk(0x0102, 16, &start)
    };
    let end = |element: u32| chunk(0x0103, 16, &longs(&[1, NONE, NONE, element]));
    let mut body = pool(&texts);
    // The first four names are attributes of Android's, by these numbers.
    let numbers = [0x0101_021b, 0x0101_021c, 0x0101_0002, 0x0101_0001];
    body.extend(chunk(0x0180, 8, &longs(&numbers)));
    body.extend(chunk(0x0100, 16, &longs(&[1, NONE, 6, ANDROID])));
    body.extend(start(
        7,
        &[
            [ANDROID, 0, NONE, 0x10, code],
            [ANDROID, 1, 10, 3, 10],
            [NONE, 4, 9, 3, 9],
        ],
    ));
    if let Some([icon, label]) = shown {
        let attributes = [[ANDROID, 2, NONE, 1, icon], [ANDROID, 3, NONE, 1, label]];
        body.extend(start(8, &attributes));
        body.extend(end(8));
    }
    body.extend(end(7));
    body.extend(chunk(0x0101, 16, &longs(&[1, NONE, 6, ANDROID])));
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
    value.try_into().expect("a package of a test is small")
}

fn u16_of(value: usize) -> u16 {
    value.try_into().expect("a package of a test is small")
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

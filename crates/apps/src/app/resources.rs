//! The resources of a package: texts and files that its manifest refers to by numbers.

use apk_info_axml::ARSC;
use apk_info_axml::structs::{
    ResTableConfig, ResTableEntry, ResTablePackage, ResourceValue, ResourceValueType,
};

/// So far a resource that refers to another is followed. A package may well have two that refer to each other.
const DEEPEST: usize = 16;
/// How many values of one resource are looked at.
const MOST_VALUES: usize = 256;
/// What a screen is taken for where a file is for none in particular, in dots per inch.
const ORDINARY: u16 = 160;

/// The resources of a package.
pub struct Resources(ARSC);

/// A file of a package, and for which screens it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFor {
    /// Dots per inch.
    pub density: u16,
    /// Its entry in the archive, as the package says.
    pub path: String,
}

/// A value of a resource.
enum Value {
    /// That of another resource.
    Refers(u32),
    /// A text, or the name of a file.
    Text(String),
    /// A number or the like, in words.
    Other(String),
}

/// The resource that an attribute refers to.
pub fn reference(value: &str) -> Option<u32> {
    let digits = value.strip_prefix('@').filter(|rest| rest.len() == 8)?;
    u32::from_str_radix(digits, 16).ok()
}

impl Resources {
    /// Reads `resources.arsc`.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        ARSC::new(&mut &*bytes).ok().map(Self)
    }

    /// The value of a resource as text, in the language that the package speaks by default.
    pub fn text(&self, mut id: u32) -> Option<String> {
        for _ in 0..DEEPEST {
            let (package, kind, number) = parts(id);
            let mut packages = self.packages(package);
            let config = ResTableConfig::default();
            let entry = packages.next()?.find_entry(&config, kind, number)?;
            match self.value(entry)? {
                Value::Refers(next) => id = next,
                Value::Text(text) | Value::Other(text) => return Some(text),
            }
        }
        None
    }

    /// The files that a resource has for screens, the densest first.
    pub fn files(&self, id: u32) -> Vec<FileFor> {
        let (mut files, mut left) = (Vec::new(), MOST_VALUES);
        let mut open = vec![(id, ORDINARY)];
        while let Some((id, inherited)) = open.pop() {
            for (density, value) in self.values(id).take(left) {
                left -= 1;
                let density = density.unwrap_or(inherited);
                match value {
                    Value::Refers(next) => open.push((next, density)),
                    Value::Text(path) => files.push(FileFor { density, path }),
                    Value::Other(_) => {}
                }
            }
            // Two that refer to each other would go on for ever.
            if left == 0 || open.len() > DEEPEST {
                break;
            }
        }
        files.sort_by(|a, b| b.density.cmp(&a.density).then_with(|| a.path.cmp(&b.path)));
        files.dedup();
        files
    }

    /// The values of a resource in all configurations, with the density where one is named.
    fn values(&self, id: u32) -> impl Iterator<Item = (Option<u16>, Value)> {
        let (package, kind, number) = parts(id);
        let kinds = self
            .packages(package)
            .flat_map(|package| &package.resources);
        kinds.filter_map(move |(config, kinds)| {
            let value = self.value(kinds.get(&kind)?.find(number)?)?;
            let (_, _, density) = config.get_orientation_touchscreen_density();
            // The highest two mean "any" and "none".
            let density = (1..0xfffe).contains(&density).then_some(density);
            Some((density, value))
        })
    }

    fn packages(&self, id: u8) -> impl Iterator<Item = &ResTablePackage> {
        let packages = self.0.packages();
        packages.filter(move |package| package.header.id & 0xff == u32::from(id))
    }

    /// The value of an entry that has just one.
    fn value(&self, entry: &ResTableEntry) -> Option<Value> {
        let packed;
        let value = match entry {
            ResTableEntry::Default(entry) => &entry.value,
            ResTableEntry::Compact(entry) => {
                let [kind, _] = entry.flags.to_be_bytes();
                packed = ResourceValue {
                    size: 8,
                    res: 0,
                    data_type: kind.into(),
                    data: entry.data,
                };
                &packed
            }
            ResTableEntry::Complex(_) | ResTableEntry::NoEntry => return None,
        };
        Some(match value.data_type {
            ResourceValueType::Reference | ResourceValueType::DynamicReference => {
                Value::Refers(value.data)
            }
            ResourceValueType::String => Value::Text(self.0.value_to_string(value)),
            _ => Value::Other(self.0.value_to_string(value)),
        })
    }
}

/// Package, type and entry of a resource.
fn parts(id: u32) -> (u8, u8, u16) {
    let [package, kind, high, low] = id.to_be_bytes();
    (package, kind, u16::from_be_bytes([high, low]))
}

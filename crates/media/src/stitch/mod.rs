//! A stitch: pictures side by side in a grid, filled row by row.

mod paint;

use std::fmt;
use std::str::FromStr;

use platform::problem::FieldFault;
use serde::{Deserialize, Deserializer, Serialize};

pub use paint::{Unreadable, cell, check, compose};

/// The grids that can be asked for, rows by columns.
pub const GRIDS: [(u32, u32); 5] = [(2, 2), (3, 3), (3, 4), (4, 3), (4, 4)];
/// The smallest cell, in pixels.
pub const MIN_CELL: u32 = 16;
/// The largest cell, in pixels.
pub const MAX_CELL: u32 = 1024;
/// The widest gap, in pixels.
pub const MAX_GAP: u32 = 200;

/// How a stitch looks. What a client leaves out has its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StitchParams {
    /// How the cells stand.
    #[serde(skip_serializing_if = "Layout::is_grid")]
    pub layout: Layout,
    /// Rows of the grid; with `columns` one of 2x2, 3x3, 3x4, 4x3, 4x4.
    pub rows: u32,
    /// Columns of the grid.
    pub columns: u32,
    /// Width and height of a cell in pixels, 16 to 1024.
    pub cell: u32,
    /// Pixels between the cells and around them, 0 to 200.
    pub gap: u32,
    /// The colour of gaps and empty cells, as in `#F5F5F5`.
    pub background: Colour,
    /// The quality of a JPEG, 1 to 100.
    pub quality: u8,
    /// What kind of file is made.
    #[serde(skip_serializing_if = "Format::is_jpeg")]
    pub format: Format,
}

/// How the cells of a stitch stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// In `rows` and `columns`.
    #[default]
    Grid,
    /// In one row, as many as there are pictures.
    Row,
    /// In one column, as many as there are pictures.
    Column,
}

/// What kind of file a stitch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A JPEG.
    #[default]
    Jpeg,
    /// A PNG, without loss.
    Png,
    /// A WebP, without loss.
    Webp,
}

impl Layout {
    fn is_grid(&self) -> bool {
        *self == Self::Grid
    }
}

impl Format {
    fn is_jpeg(&self) -> bool {
        *self == Self::Jpeg
    }

    /// The end of its keys.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::Webp => "webp",
        }
    }
}

/// A colour, `#RRGGBB` on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, utoipa::ToSchema)]
#[schema(value_type = String, example = "#F5F5F5")]
pub struct Colour(pub [u8; 3]);

/// A text that is no colour.
#[derive(Debug, thiserror::Error)]
#[error("a colour is written #RRGGBB")]
pub struct NoColour;

impl Default for StitchParams {
    fn default() -> Self {
        Self {
            layout: Layout::Grid,
            rows: 3,
            columns: 4,
            cell: 512,
            gap: 10,
            background: Colour([0xF5; 3]),
            quality: 90,
            format: Format::Jpeg,
        }
    }
}

impl StitchParams {
    /// With as many rows and columns as so many pictures take.
    pub fn for_pictures(mut self, pictures: usize) -> Self {
        let pictures = u32::try_from(pictures).unwrap_or(u32::MAX).max(1);
        (self.rows, self.columns) = match self.layout {
            Layout::Grid => (self.rows, self.columns),
            Layout::Row => (1, pictures),
            Layout::Column => (pictures, 1),
        };
        self
    }

    /// How many pictures fit.
    pub fn cells(&self) -> usize {
        (self.rows * self.columns) as usize
    }

    /// Width and height of the whole in pixels.
    pub fn size(&self) -> (u32, u32) {
        let side = |count: u32| count * self.cell + (count + 1) * self.gap;
        (side(self.columns), side(self.rows))
    }

    /// The top left corner of a cell.
    pub fn corner(&self, index: usize) -> (u32, u32) {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let place = |count: u32| self.gap + count * (self.cell + self.gap);
        (place(index % self.columns), place(index / self.columns))
    }

    /// What is wrong with them.
    pub fn faults(&self) -> Vec<FieldFault> {
        let mut faults = Vec::new();
        let mut fault = |field: &str, message: String| {
            faults.push(FieldFault {
                field: format!("params.{field}"),
                message,
            });
        };
        if self.layout == Layout::Grid && !GRIDS.contains(&(self.rows, self.columns)) {
            let grids: Vec<_> = GRIDS.iter().map(|(r, c)| format!("{r}x{c}")).collect();
            let message = format!(
                "{}x{} is not offered: rows x columns is one of {}",
                self.rows,
                self.columns,
                grids.join(", ")
            );
            fault("rows", message);
        }
        if !(MIN_CELL..=MAX_CELL).contains(&self.cell) {
            fault("cell", format!("must be {MIN_CELL} to {MAX_CELL} pixels"));
        }
        if self.gap > MAX_GAP {
            fault("gap", format!("must be 0 to {MAX_GAP} pixels"));
        }
        if !(1..=100).contains(&self.quality) {
            fault("quality", "must be 1 to 100".to_owned());
        }
        faults
    }
}

impl FromStr for Colour {
    type Err = NoColour;

    fn from_str(text: &str) -> Result<Self, NoColour> {
        let digits = text.strip_prefix('#').ok_or(NoColour)?;
        let mut bytes = [0; 3];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| NoColour)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", hex::encode_upper(self.0))
    }
}

impl Serialize for Colour {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Colour {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_stitch_has_the_size_that_clients_expect() {
        let params = StitchParams::default();

        assert_eq!(params.size(), (2098, 1576));
        assert_eq!(params.corner(0), (10, 10));
        assert_eq!(params.corner(5), (10 + 522, 10 + 522));
        assert!(params.faults().is_empty());
    }

    #[test]
    fn everything_out_of_bounds_is_told() {
        let params = StitchParams {
            rows: 2,
            columns: 3,
            cell: 15,
            gap: 201,
            quality: 0,
            ..StitchParams::default()
        };

        let fields: Vec<_> = params.faults().into_iter().map(|one| one.field).collect();

        assert_eq!(
            fields,
            ["params.rows", "params.cell", "params.gap", "params.quality"]
        );
    }

    #[test]
    fn colours_are_read_and_written_alike() {
        assert_eq!("#f5F5f5".parse::<Colour>().unwrap().to_string(), "#F5F5F5");
        for text in ["", "f5f5f5", "#f5f5f", "#f5f5f5f", "#zzzzzz", "#é1234"] {
            assert!(text.parse::<Colour>().is_err(), "{text}");
        }
    }

    #[test]
    fn any_colour_is_six_digits() {
        const WORDS: [&str; 8] = ["#", "f5", "F5", "0", "#f5f5f5", "+f", "é", "zz"];
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(8)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                if let Ok(colour) = text.parse::<Colour>() {
                    assert_eq!(colour.to_string(), text.to_ascii_uppercase());
                }
            });
    }
}

//! The pixels of a stitch. All of it keeps a core busy: call it where blocking is fine.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::imageops::FilterType;
use image::metadata::Orientation;
use image::{
    DynamicImage, GenericImageView, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits,
    Rgb, RgbImage,
};

use super::{Colour, Format, StitchParams};

/// The longest side of a picture that is read.
const MAX_SIDE: u32 = 10_000;
/// The memory that the pixels of a picture may take; a small file can claim to be much larger.
const MAX_PIXELS: u64 = 96 << 20;

/// Why a file could not be read as a picture.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It has too many pixels.
    #[error("is larger than {MAX_SIDE} pixels a side or {} MiB of pixels", MAX_PIXELS >> 20)]
    TooLarge,
    /// It is not, or not wholly, a JPEG, PNG or WebP picture.
    #[error("is not a JPEG, PNG or WebP picture that can be read")]
    Broken,
}

/// Whether a file is a picture, and one with not too many pixels.
///
/// # Errors
/// Where it is not.
pub fn check(file: &[u8]) -> Result<(), Unreadable> {
    read(file).map(|_| ()).map_err(unreadable)
}

/// Reads a picture, cuts the largest square out of its middle and scales that to a cell.
///
/// # Errors
/// Where the file is no picture, or one with too many pixels.
pub fn cell(file: &[u8], side: u32, background: Colour) -> Result<RgbImage, Unreadable> {
    let (picture, orientation) = read(file).map_err(unreadable)?;
    let (width, height) = picture.dimensions();
    let square = width.min(height);
    if square == 0 {
        return Err(Unreadable::Broken);
    }
    // Cut first: scaling a very long picture whole would make it far longer.
    let picture = if width == height {
        picture
    } else {
        picture.crop_imm((width - square) / 2, (height - square) / 2, square, square)
    };
    let mut scaled = if square == side {
        picture
    } else {
        picture.resize_exact(side, side, FilterType::CatmullRom)
    };
    scaled.apply_orientation(orientation);
    Ok(flatten(scaled, background))
}

/// Puts cells on their places, row by row, and encodes the whole. Cells beyond the grid are left out.
///
/// # Errors
/// Where the encoder refuses.
pub fn compose(params: &StitchParams, cells: &[RgbImage]) -> Result<Vec<u8>, ImageError> {
    let (width, height) = params.size();
    let mut canvas = RgbImage::from_pixel(width, height, Rgb(params.background.0));
    let whole: &mut [u8] = &mut canvas;
    let stride = width as usize * 3;
    for (index, cell) in cells.iter().enumerate().take(params.cells()) {
        let (left, top) = params.corner(index);
        let row_bytes = cell.width() as usize * 3;
        for (row, pixels) in cell.chunks_exact(row_bytes).enumerate() {
            let start = (top as usize + row) * stride + left as usize * 3;
            whole[start..start + row_bytes].copy_from_slice(pixels);
        }
    }
    let mut file = Vec::new();
    match params.format {
        Format::Jpeg => {
            JpegEncoder::new_with_quality(&mut file, params.quality).encode_image(&canvas)?
        }
        Format::Png => canvas.write_with_encoder(PngEncoder::new(&mut file))?,
        Format::Webp => canvas.write_with_encoder(WebPEncoder::new_lossless(&mut file))?,
    }
    Ok(file)
}

fn unreadable(error: ImageError) -> Unreadable {
    match error {
        ImageError::Limits(_) => Unreadable::TooLarge,
        _ => Unreadable::Broken,
    }
}

fn read(file: &[u8]) -> Result<(DynamicImage, Orientation), ImageError> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_PIXELS);

    let mut reader = ImageReader::new(Cursor::new(file)).with_guessed_format()?;
    if !matches!(
        reader.format(),
        Some(ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP)
    ) {
        reader.clear_format();
    }
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder()?;
    limits.reserve(decoder.total_bytes())?;
    decoder.set_limits(limits)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((DynamicImage::from_decoder(decoder)?, orientation))
}

/// What is transparent shows the background.
fn flatten(picture: DynamicImage, Colour(background): Colour) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let pixels = picture.into_rgba8();
    let (width, height) = pixels.dimensions();
    let flat = pixels
        .chunks_exact(4)
        .flat_map(|pixel| {
            let alpha = u16::from(pixel[3]);
            [0, 1, 2].map(|channel| {
                let mixed = u16::from(pixel[channel]) * alpha
                    + u16::from(background[channel]) * (255 - alpha);
                ((mixed + 127) / 255) as u8
            })
        })
        .collect();
    RgbImage::from_raw(width, height, flat).expect("three bytes were made of every four")
}

#[cfg(test)]
mod tests {
    use image::{Rgba, RgbaImage};

    use super::*;

    const GREY: Colour = Colour([0xF5; 3]);

    fn file(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn the_middle_fills_the_cell() {
        // Red, green and blue thirds: only the green one is in the middle square.
        let picture = RgbImage::from_fn(300, 100, |x, _| match x / 100 {
            0 => Rgb([255, 0, 0]),
            1 => Rgb([0, 255, 0]),
            _ => Rgb([0, 0, 255]),
        });

        let cell = cell(&file(picture, ImageFormat::Png), 64, GREY).unwrap();

        assert_eq!(cell.dimensions(), (64, 64));
        assert!(cell.pixels().all(|pixel| pixel.0 == [0, 255, 0]));
    }

    #[test]
    fn what_is_transparent_shows_the_background() {
        let clear = RgbaImage::from_pixel(20, 20, Rgba([255, 0, 0, 0]));
        let half = RgbaImage::from_pixel(20, 20, Rgba([255, 255, 255, 128]));

        let clear = cell(&file(clear, ImageFormat::Png), 20, Colour([1, 2, 3])).unwrap();
        let half = cell(&file(half, ImageFormat::WebP), 20, Colour([0, 0, 0])).unwrap();

        assert_eq!(clear.get_pixel(10, 10).0, [1, 2, 3]);
        assert_eq!(half.get_pixel(10, 10).0, [128, 128, 128]);
    }

    #[test]
    fn a_picture_with_too_many_pixels_is_refused_before_they_are_read() {
        let mut long = file(RgbImage::new(10, 10), ImageFormat::Png);
        // The size stands in the header, whose checksum must fit.
        for (width, height) in [(10_001_u32, 10_u32), (9_000, 9_000)] {
            long[16..20].copy_from_slice(&width.to_be_bytes());
            long[20..24].copy_from_slice(&height.to_be_bytes());
            let checksum = crc32(&long[12..29]);
            long[29..33].copy_from_slice(&checksum.to_be_bytes());

            assert!(matches!(cell(&long, 64, GREY), Err(Unreadable::TooLarge)));
        }
    }

    #[test]
    fn a_very_long_picture_is_cut_before_it_is_scaled() {
        let long = RgbImage::from_pixel(9_999, 1, Rgb([9, 9, 9]));

        let cell = cell(&file(long, ImageFormat::Png), 1024, GREY).unwrap();

        assert_eq!(cell.get_pixel(1000, 1000).0, [9, 9, 9]);
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        let whole = file(RgbImage::new(50, 50), ImageFormat::Png);
        for bytes in [&b""[..], b"hello", b"\xFF\xD8\xFF", &whole[..40]] {
            assert!(matches!(cell(bytes, 64, GREY), Err(Unreadable::Broken)));
        }
    }

    #[test]
    fn surplus_pictures_are_left_out_and_empty_cells_stay_background() {
        let params = StitchParams {
            rows: 2,
            columns: 2,
            cell: 16,
            gap: 4,
            ..StitchParams::default()
        };
        let red = RgbImage::from_pixel(16, 16, Rgb([255, 0, 0]));

        let one = compose(&params, std::slice::from_ref(&red)).unwrap();
        let five = compose(&params, &vec![red; 5]).unwrap();

        let one = image::load_from_memory(&one).unwrap().into_rgb8();
        assert_eq!(one.dimensions(), (44, 44));
        assert!(one.get_pixel(12, 12).0[0] > 240 && one.get_pixel(12, 12).0[1] < 15);
        assert!(
            one.get_pixel(32, 32)
                .0
                .iter()
                .all(|value| value.abs_diff(0xF5) < 4)
        );
        assert_eq!(
            image::load_from_memory(&five).unwrap().dimensions(),
            (44, 44)
        );
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |sum, byte| {
            (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
                if sum & 1 == 1 {
                    sum >> 1 ^ 0xEDB8_8320
                } else {
                    sum >> 1
                }
            })
        })
    }
}

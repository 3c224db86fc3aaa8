//! Draws letters as crooked lines. The lines are cut to pieces and mixed, so that the text cannot be read from the order in
//! which they stand.

use std::fmt::Write;

use rand::RngExt;

const WIDTH: f32 = 200.0;
const HEIGHT: f32 = 70.0;
/// Into how many pieces each line is cut.
const PIECES: u8 = 3;
/// How many lines mean nothing.
const NOISE: usize = 6;

/// Each letter as lines through points, column and row from 0: a grid of five by seven. None is easily taken for another.
const GLYPHS: [(char, &[&str]); 19] = [
    ('A', &["06 20 46", "13 33"]),
    ('C', &["41 30 10 01 05 16 36 45"]),
    ('E', &["40 00 06 46", "03 33"]),
    ('F', &["40 00 06", "03 33"]),
    ('H', &["00 06", "40 46", "03 43"]),
    ('J', &["40 45 36 16 05"]),
    ('K', &["00 06", "40 03 46"]),
    ('L', &["00 06 46"]),
    ('M', &["06 00 23 40 46"]),
    ('N', &["06 00 46 40"]),
    ('P', &["06 00 30 41 42 33 03"]),
    ('R', &["06 00 30 41 42 33 03", "23 46"]),
    ('T', &["00 40", "20 26"]),
    ('W', &["00 16 23 36 40"]),
    ('X', &["00 46", "40 06"]),
    ('Y', &["00 23 40", "23 26"]),
    ('3', &["01 10 30 41 42 33 23", "33 44 45 36 16 05"]),
    ('4', &["36 30 04 44"]),
    ('7', &["00 40 16"]),
];

type Point = (f32, f32);

/// The letters that can be drawn.
pub fn letters() -> [char; GLYPHS.len()] {
    GLYPHS.map(|(letter, _)| letter)
}

/// A picture of a text, never twice the same.
pub fn svg(text: &str) -> String {
    let mut rng = rand::rng();
    let mut between = |least: f32, most: f32| rng.random_range(least..most);
    let mut lines: Vec<(Point, Point)> = Vec::new();
    let wave = (between(3.0, 6.0), between(0.0, 6.3));
    for (at, letter) in text.chars().enumerate() {
        let lean = between(-0.35, 0.35_f32);
        let (sin, cos) = lean.sin_cos();
        let size = (between(5.0, 6.5), between(5.0, 6.5));
        let middle = (
            24.0 + 38.0 * at as f32 + between(-4.0, 4.0),
            between(30.0, 40.0),
        );
        let mut place = |(column, row): Point| {
            let (x, y) = ((column - 2.0) * size.0, (row - 3.0) * size.1);
            let (x, y) = (middle.0 + x * cos - y * sin, middle.1 + x * sin + y * cos);
            let bend = (x / 20.0 + wave.1).sin() * wave.0;
            (x + between(-0.7, 0.7), y + bend + between(-0.7, 0.7))
        };
        for (from, to) in strokes(letter) {
            let along = |piece: u8| {
                let part = f32::from(piece) / f32::from(PIECES);
                (
                    from.0 + (to.0 - from.0) * part,
                    from.1 + (to.1 - from.1) * part,
                )
            };
            let mut last = place(along(0));
            for piece in 1..=PIECES {
                let next = place(along(piece));
                lines.push((last, next));
                last = next;
            }
        }
    }
    for _ in 0..NOISE {
        let mut anywhere = || (between(0.0, WIDTH), between(0.0, HEIGHT));
        lines.push((anywhere(), anywhere()));
    }
    drawn(lines)
}

/// The straight parts of a letter.
fn strokes(letter: char) -> Vec<(Point, Point)> {
    let glyph = GLYPHS.iter().find(|(known, _)| *known == letter);
    let lines = glyph.map_or(&[][..], |(_, lines)| lines);
    let mut strokes = Vec::new();
    for line in lines {
        let points = line.split(' ').filter_map(|point| {
            let mut digits = point.bytes().map(|digit| f32::from(digit - b'0'));
            digits.next().zip(digits.next())
        });
        let points: Vec<Point> = points.collect();
        strokes.extend(points.windows(2).map(|pair| (pair[0], pair[1])));
    }
    strokes
}

/// The lines in any order and direction.
fn drawn(mut lines: Vec<(Point, Point)>) -> String {
    let mut rng = rand::rng();
    let mut path = String::new();
    while !lines.is_empty() {
        let (mut from, mut to) = lines.swap_remove(rng.random_range(0..lines.len()));
        if rng.random() {
            std::mem::swap(&mut from, &mut to);
        }
        // A string takes whatever is written.
        let _ = write!(path, "M{:.1} {:.1}L{:.1} {:.1}", from.0, from.1, to.0, to.1);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\">\
         <rect width=\"100%\" height=\"100%\" fill=\"#f4f4f4\"/>\
         <path d=\"{path}\" fill=\"none\" stroke=\"#345\" stroke-width=\"2.6\" stroke-linecap=\"round\"/></svg>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_letter_is_drawn_within_the_picture_and_none_is_written() {
        for letter in letters() {
            let text = String::from(letter).repeat(5);
            let svg = svg(&text);

            let (_, path) = svg.split_once(" d=\"").unwrap();
            let (path, rest) = path.split_once('"').unwrap();
            let lines: Vec<&str> = path.split('M').skip(1).collect();
            let own = strokes(letter).len() * 5 * usize::from(PIECES);
            assert_eq!(lines.len(), own + NOISE, "{letter}");
            for line in lines {
                let numbers = line
                    .split(['L', ' '])
                    .map(|text| text.parse::<f32>().unwrap());
                let numbers: Vec<f32> = numbers.collect();
                assert_eq!(numbers.len(), 4, "{line}");
                for point in numbers.chunks(2) {
                    assert!((0.0..=WIDTH).contains(&point[0]), "{letter}: {line}");
                    assert!((0.0..=HEIGHT).contains(&point[1]), "{letter}: {line}");
                }
            }
            assert!(rest.ends_with("</svg>") && !svg.contains("<text"));
            assert!(svg.len() < 20_000, "{}", svg.len());
        }
    }

    #[test]
    fn a_text_is_never_drawn_twice_the_same() {
        assert_ne!(svg("AC347"), svg("AC347"));
    }

    #[test]
    fn no_letter_is_there_twice() {
        let all = std::collections::BTreeSet::from(letters());
        assert_eq!(all.len(), GLYPHS.len());
    }
}

//! Tables for people.

/// Lines up columns under their heads.
pub fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = head.iter().map(|cell| (*cell).to_owned()).collect();
    let rows = rows.map(|row| row.iter().map(|cell| line(cell)).collect());
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let columns = rows[0].len();
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let width = |row: &Vec<String>| row[column].chars().count();
            rows.iter().map(width).max().unwrap_or(0)
        })
        .collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| {
            let missing = width - cell.chars().count();
            cell.clone() + &" ".repeat(missing)
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A cell in one line, whatever people wrote into it.
pub fn line(cell: &str) -> String {
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    cell.chars().map(plain).collect()
}

/// A span in the two units that matter.
pub fn span(seconds: i64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_one_line_and_no_cell_is_too_wide() {
        let wide = "x".repeat(100_000);
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let rows = [row(["two\nlines", "a"]), row([wide.as_str(), "b"])];

        let text = table(&["ONE", "TWO"], rows.into_iter());

        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("two lines ") && lines[1].ends_with("  a"));
        assert_eq!(lines[2].len(), 100_003);
    }
}

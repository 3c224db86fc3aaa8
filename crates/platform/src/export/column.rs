//! Columns as they stand in a file, and values in a statement that takes no parameters.

use std::fmt::Display;

/// A column of a table and of its export alike.
#[derive(Clone, Copy, Debug)]
pub enum Column {
    /// What we wrote ourselves.
    Plain(&'static str),
    /// What somebody else may have chosen: a spreadsheet is not to take it for a formula.
    Text(&'static str),
    /// UTC, to the millisecond.
    Time(&'static str),
    /// Fen, as yuan with two decimals.
    Money(&'static str),
}

impl Column {
    /// What stands behind `select`.
    pub fn list(columns: &[Self]) -> String {
        let columns: Vec<_> = columns.iter().map(Self::sql).collect();
        columns.join(", ")
    }

    fn sql(&self) -> String {
        match self {
            Self::Plain(name) => (*name).to_owned(),
            Self::Text(name) => {
                format!(
                    r"case when {name} ~ '^[=+@\t\r-]' then '''' || {name} else {name} end as {name}"
                )
            }
            Self::Time(name) => format!(
                r#"to_char({name} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as {name}"#
            ),
            Self::Money(name) => format!("round({name} / 100.0, 2) as {name}"),
        }
    }
}

/// A text in a statement: `COPY` takes no parameters.
pub fn literal(value: impl Display) -> String {
    // Without a backslash rule of its own, whatever `standard_conforming_strings` says; PostgreSQL has no NUL in texts.
    let value = value.to_string().replace('\0', "");
    let value = value.replace('\\', r"\\").replace('\'', "''");
    format!("E'{value}'")
}

/// A statement with values in the place of its parameters, `null` for those that are none. Nothing in a value is taken for a
/// parameter. Outside of parameters the statement has no `$`.
pub fn filled(statement: &str, values: &[Option<String>]) -> String {
    let mut pieces = statement.split('$');
    let mut filled = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let digits = piece.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = piece.split_at(digits);
        let place = number.parse::<usize>().ok();
        let value = place.and_then(|place| values.get(place.checked_sub(1)?)?.as_ref());
        filled.push_str(&value.map_or_else(|| "null".to_owned(), literal));
        filled.push_str(rest);
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_leaves_its_quotes() {
        for (text, expected) in [
            ("plain", "E'plain'"),
            ("it's", "E'it''s'"),
            (r"back\'slash", r"E'back\\''slash'"),
            ("nul\0", "E'nul'"),
        ] {
            assert_eq!(literal(text), expected);
        }
    }

    #[test]
    fn values_take_the_place_of_parameters_and_of_nothing_in_other_values() {
        let values = [Some("a $2".to_owned()), None, Some("it's".to_owned())];
        assert_eq!(
            filled("x = $1::text and $2 is null or y = $3", &values),
            "x = E'a $2'::text and null is null or y = E'it''s'"
        );
    }
}

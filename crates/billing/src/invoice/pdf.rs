//! An invoice on paper. The text is set in `STSong-Light`, one of the fonts that PDF names for Chinese and every viewer
//! brings or substitutes, so that names in Chinese and Latin letters show without a font of ours in the file.

use contracts::Timestamp;
use pdf_writer::types::{CidFontType, FontFlags, SystemInfo};
use pdf_writer::{Content, Finish, Name, Pdf, Rect, Ref, Str};

use super::{Invoice, Item};

/// A4, in points.
const PAGE: (f32, f32) = (595.0, 842.0);
const LEFT: f32 = 56.0;
const TOP: f32 = 780.0;
const BOTTOM: f32 = 64.0;
const LEADING: f32 = 18.0;
const COLUMNS: [f32; 4] = [LEFT, 330.0, 400.0, 480.0];
const FONT: Name<'static> = Name(b"F1");
const INFO: SystemInfo<'static> = SystemInfo {
    registry: Str(b"Adobe"),
    ordering: Str(b"GB1"),
    supplement: 4,
};

/// A line: what stands at which column, and its size.
struct Line {
    size: f32,
    cells: Vec<(f32, String)>,
}

/// The document.
pub fn print(invoice: &Invoice) -> Vec<u8> {
    let lines = lines(invoice);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a few dozen lines on a page"
    )]
    let a_page = ((TOP - BOTTOM) / LEADING) as usize;
    let pages: Vec<&[Line]> = lines.chunks(a_page).collect();

    let mut next = 1..;
    let mut take = || Ref::new(next.next().unwrap_or(1));
    let (catalog, tree, font, cid, descriptor) = (take(), take(), take(), take(), take());
    let places: Vec<(Ref, Ref)> = pages.iter().map(|_| (take(), take())).collect();

    let mut pdf = Pdf::new();
    pdf.catalog(catalog).pages(tree);
    pdf.pages(tree)
        .kids(places.iter().map(|(page, _)| *page))
        .count(i32::try_from(places.len()).unwrap_or(i32::MAX));
    for ((page, content), lines) in places.into_iter().zip(pages) {
        let mut writer = pdf.page(page);
        writer
            .media_box(Rect::new(0.0, 0.0, PAGE.0, PAGE.1))
            .parent(tree)
            .contents(content);
        writer.resources().fonts().pair(FONT, font);
        writer.finish();
        pdf.stream(content, &set(lines));
    }
    write_font(&mut pdf, font, cid, descriptor);
    pdf.finish()
}

fn lines(invoice: &Invoice) -> Vec<Line> {
    let line = |size: f32, cells: &[(usize, String)]| Line {
        size,
        cells: cells
            .iter()
            .map(|(column, text)| (COLUMNS[*column], text.clone()))
            .collect(),
    };
    let money = |amount| format!("{amount} {}", invoice.currency);
    let plain = |text: String| line(10.0, &[(0, text)]);
    let mut lines = vec![
        line(18.0, &[(0, format!("Invoice {}", invoice.invoice_number))]),
        plain(format!("User: {}", invoice.user_id)),
        plain(format!(
            "Period: {} - {}",
            day(invoice.period_start),
            day(invoice.period_end)
        )),
        plain(format!(
            "Date: {}   Due: {}   Status: {}",
            day(invoice.created_at),
            day(invoice.due_date),
            invoice.status.name()
        )),
        line(10.0, &[]),
        line(
            10.0,
            &[
                (0, "Description".into()),
                (1, "Quantity".into()),
                (2, "Price".into()),
                (3, "Amount".into()),
            ],
        ),
    ];
    for item in &invoice.items.0 {
        let mut parts = wrap(&item.description).into_iter();
        let first = parts.next().unwrap_or_default();
        lines.push(line(10.0, &row(first, item)));
        lines.extend(parts.map(plain));
    }
    lines.push(line(10.0, &[]));
    let (settled, owed) = invoice.settled();
    for (name, amount) in [
        ("Subtotal", invoice.subtotal),
        ("Tax", invoice.tax),
        ("Discount", invoice.discount),
        ("Total", invoice.total),
        ("Settled", settled),
        ("Due", owed),
    ] {
        lines.push(line(10.0, &[(2, name.to_owned()), (3, money(amount))]));
    }
    lines
}

fn row(description: String, item: &Item) -> [(usize, String); 4] {
    [
        (0, description),
        (1, item.quantity.to_string()),
        (2, item.unit_price.to_string()),
        (3, item.amount.to_string()),
    ]
}

fn day(moment: Timestamp) -> String {
    moment.utc().format("%Y-%m-%d").to_string()
}

/// Pieces that fit into the first column: a Chinese sign is as wide as two letters.
fn wrap(text: &str) -> Vec<String> {
    const WIDTH: usize = 50;
    let mut pieces = vec![String::new()];
    let mut used = 0;
    for sign in text.chars().filter(|sign| !sign.is_control()) {
        let width = if sign.is_ascii() { 1 } else { 2 };
        if used + width > WIDTH {
            pieces.push(String::new());
            used = 0;
        }
        used += width;
        if let Some(piece) = pieces.last_mut() {
            piece.push(sign);
        }
    }
    pieces
}

fn set(lines: &[Line]) -> Vec<u8> {
    let mut content = Content::new();
    let mut height = TOP;
    for line in lines {
        for (column, text) in &line.cells {
            let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
            content
                .begin_text()
                .set_font(FONT, line.size)
                .next_line(*column, height)
                .show(Str(&units))
                .end_text();
        }
        height -= LEADING;
    }
    content.finish().to_vec()
}

fn write_font(pdf: &mut Pdf, font: Ref, cid: Ref, descriptor: Ref) {
    let name = Name(b"STSong-Light");
    pdf.type0_font(font)
        .base_font(Name(b"STSong-Light-UniGB-UTF16-H"))
        .encoding_predefined(Name(b"UniGB-UTF16-H"))
        .descendant_font(cid);
    let mut writer = pdf.cid_font(cid);
    writer
        .subtype(CidFontType::Type0)
        .base_font(name)
        .system_info(INFO)
        .font_descriptor(descriptor)
        .default_width(1_000.0);
    // The letters of ASCII are half as wide as the signs.
    writer.widths().same(1, 95, 500.0);
    writer.finish();
    pdf.font_descriptor(descriptor)
        .name(name)
        .flags(FontFlags::SYMBOLIC | FontFlags::SERIF)
        .bbox(Rect::new(-25.0, -254.0, 1_000.0, 880.0))
        .italic_angle(0.0)
        .ascent(880.0)
        .descent(-120.0)
        .cap_height(880.0)
        .stem_v(93.0);
}

#[cfg(test)]
mod tests {
    use contracts::Money;
    use platform::Clock;

    use super::super::Kind;
    use super::*;

    fn invoice(description: &str, lines: usize) -> Invoice {
        let now = Clock::system().now();
        let item = Item {
            id: "1".into(),
            description: description.into(),
            quantity: 2,
            unit_price: Money(150),
            amount: Money(300),
        };
        let user = "u".parse().unwrap();
        Invoice::over(user, Kind::Monthly, vec![item; lines], (now, now), now)
    }

    #[test]
    fn chinese_text_is_written_as_it_is_and_long_invoices_take_more_pages() {
        let one = print(&invoice("云手机 \u{1f4f1} (3)", 1));
        let many = print(&invoice(&"云手机".repeat(60), 40));

        // In hexadecimal, as the units of UTF-16.
        assert!(one.starts_with(b"%PDF-"));
        assert!(String::from_utf8_lossy(&one).contains("4E91624B673A"));
        assert!(String::from_utf8_lossy(&one).contains("/Count 1"));
        assert!(String::from_utf8_lossy(&many).contains("/Count 9"));
    }
}

//! Lists: a bare array, a page, or the one of the two that the caller asks for.

use axum::response::{IntoResponse, Response};
use garde::Validate;
use serde::{Deserialize, Serialize};

use super::Json;

/// The query of a bare array.
#[derive(Clone, Copy, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SliceQuery {
    /// How many, 1 to 500; default 100.
    #[garde(range(min = 1))]
    pub limit: Option<i64>,
    /// How many to leave out first; default 0.
    #[garde(range(min = 0))]
    pub offset: Option<i64>,
}

/// The query of a page.
#[derive(Clone, Copy, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Which page, from 1.
    #[garde(range(min = 1, max = 1_000_000_000))]
    pub page: Option<i64>,
    /// How many on a page, 1 to 500; default 10.
    #[garde(range(min = 1))]
    pub page_size: Option<i64>,
    /// The same as `pageSize`.
    #[garde(range(min = 1))]
    pub limit: Option<i64>,
    /// How many to leave out first, where a bare array is asked for.
    #[garde(range(min = 0))]
    pub offset: Option<i64>,
}

/// Which rows of a list are wanted, within bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// `limit` of the statement.
    pub limit: i64,
    /// `offset` of the statement.
    pub offset: i64,
}

impl SliceQuery {
    /// The rows wanted.
    pub fn slice(self) -> Slice {
        Slice {
            limit: self.limit.unwrap_or(100).clamp(1, 500),
            offset: self.offset.unwrap_or(0).max(0),
        }
    }
}

impl PageQuery {
    /// Whether a page is asked for where both forms are possible.
    pub fn wants_page(self) -> bool {
        self.page.is_some() || self.page_size.is_some()
    }

    /// The rows of the page wanted.
    pub fn slice(self) -> Slice {
        let limit = self.page_size.or(self.limit).unwrap_or(10).clamp(1, 500);
        Slice {
            limit,
            offset: (self.page.unwrap_or(1).max(1) - 1).saturating_mul(limit),
        }
    }

    /// The rows wanted where both forms are possible.
    pub fn dual_slice(self) -> Slice {
        if self.wants_page() {
            self.slice()
        } else {
            SliceQuery {
                limit: self.limit,
                offset: self.offset,
            }
            .slice()
        }
    }
}

/// A page of a list. `data` and `items` are the same array.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// The entries.
    pub data: Vec<T>,
    /// The entries once more, for clients that read this name.
    pub items: Vec<T>,
    /// How many there are on all pages.
    pub total: i64,
    /// Which page this is, from 1.
    pub page: i64,
    /// How many entries a page has.
    pub page_size: i64,
    /// How many pages there are.
    pub total_pages: i64,
}

impl<T: Clone> Page<T> {
    /// A page of a list that has `total` entries.
    pub fn new(entries: Vec<T>, total: i64, query: PageQuery) -> Self {
        let Slice { limit, offset } = query.slice();
        Self {
            items: entries.clone(),
            data: entries,
            total,
            page: offset / limit + 1,
            page_size: limit,
            total_pages: (total + limit - 1) / limit,
        }
    }
}

/// A page where one is asked for, else a bare array.
#[derive(Clone, Debug)]
pub enum Dual<T> {
    /// The page asked for.
    Page(Page<T>),
    /// The bare array.
    Array(Vec<T>),
}

impl<T: Clone> Dual<T> {
    /// The form that the query asks for.
    pub fn new(entries: Vec<T>, total: i64, query: PageQuery) -> Self {
        if query.wants_page() {
            Self::Page(Page::new(entries, total, query))
        } else {
            Self::Array(entries)
        }
    }
}

impl<T: Serialize> IntoResponse for Dual<T> {
    fn into_response(self) -> Response {
        match self {
            Self::Page(page) => Json(page).into_response(),
            Self::Array(entries) => Json(entries).into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_clamped_and_pages_do_not_overlap() {
        let query = PageQuery {
            page: Some(3),
            page_size: Some(9_999),
            ..PageQuery::default()
        };

        assert_eq!(
            query.slice(),
            Slice {
                limit: 500,
                offset: 1_000
            }
        );
        assert_eq!(
            PageQuery {
                limit: Some(20),
                ..PageQuery::default()
            }
            .slice(),
            Slice {
                limit: 20,
                offset: 0
            }
        );
        assert_eq!(Page::new(vec![1], 11, PageQuery::default()).total_pages, 2);
    }

    #[test]
    fn any_page_is_a_slice_within_bounds() {
        type Asked = Option<i64>;
        bolero::check!()
            .with_type::<(Asked, Asked, Asked, Asked, u32)>()
            .with_iterations(2_000)
            .for_each(|(page, page_size, limit, offset, total)| {
                let query = PageQuery {
                    page: *page,
                    page_size: *page_size,
                    limit: *limit,
                    offset: *offset,
                };
                let plain = SliceQuery {
                    limit: *limit,
                    offset: *offset,
                };
                for slice in [query.slice(), query.dual_slice(), plain.slice()] {
                    assert!(
                        (1..=500).contains(&slice.limit) && slice.offset >= 0,
                        "{query:?}"
                    );
                }
                let page = Page::new(vec![()], i64::from(*total), query);
                assert!(
                    page.page >= 1 && page.total_pages * page.page_size >= page.total,
                    "{query:?}"
                );
                assert!(
                    (page.total_pages - 1) * page.page_size < page.total.max(1),
                    "{query:?}"
                );
            });
    }
}

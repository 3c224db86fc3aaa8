//! Features: what this version really makes.

use platform::CurrentUser;
use platform::http::{Json, Path};
use platform::problem::ProblemBody;
use serde::Serialize;
use serde_json::{Value, json};

use crate::stitch::{GRIDS, MAX_CELL, MAX_GAP, MIN_CELL, StitchParams};
use crate::task::TaskType;
use crate::{Error, Result};

/// Something that can be made.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Feature {
    /// The `type` of its tasks.
    pub id: TaskType,
    /// What people call it.
    pub name: &'static str,
    /// What kind of thing it makes.
    pub category: &'static str,
    /// Credits a task costs.
    pub credit_cost: i32,
    /// How often a user may, where that is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<&'static str>,
    /// The content type of what it makes.
    pub output_type: &'static str,
    /// The JSON Schema of its `params`.
    pub form_schema: Value,
    /// Whether it is offered.
    pub is_enabled: bool,
}

/// Lists what can be made.
#[utoipa::path(get, path = "/media/features", tag = "media", responses((status = 200, body = Vec<Feature>), (status = 401, body = ProblemBody)))]
pub async fn list_features(_user: CurrentUser) -> Json<Vec<Feature>> {
    Json(features())
}

/// Shows one thing that can be made.
#[utoipa::path(get, path = "/media/features/{feature_id}", tag = "media", params(("feature_id" = String, Path)), responses((status = 200, body = Feature), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn find_feature(_user: CurrentUser, Path(id): Path<String>) -> Result<Json<Feature>> {
    let feature = features().into_iter().find(|one| one.id.name() == id);
    feature.map(Json).ok_or(Error::NoFeature)
}

fn features() -> Vec<Feature> {
    let default = StitchParams::default();
    let whole = |least: u32, most: u32, default: u32| json!({ "type": "integer", "minimum": least, "maximum": most, "default": default });
    let grids: Vec<Value> = GRIDS
        .iter()
        .map(|(rows, columns)| json!({ "properties": { "rows": { "const": rows }, "columns": { "const": columns } } }))
        .collect();
    vec![Feature {
        id: TaskType::ImageStitch,
        name: "Stitch pictures",
        category: "image",
        credit_cost: 0,
        rate_limit: None,
        output_type: "image/jpeg",
        form_schema: json!({
            "type": "object",
            "properties": {
                "rows": whole(2, 4, default.rows),
                "columns": whole(2, 4, default.columns),
                "cell": whole(MIN_CELL, MAX_CELL, default.cell),
                "gap": whole(0, MAX_GAP, default.gap),
                "background": { "type": "string", "pattern": "^#[0-9A-Fa-f]{6}$", "default": default.background },
                "quality": whole(1, 100, default.quality.into()),
            },
            "anyOf": grids,
        }),
        is_enabled: true,
    }]
}

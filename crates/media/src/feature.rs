//! Features: what this version really makes.

use axum::extract::State;
use platform::CurrentUser;
use platform::http::{Json, Path};
use platform::problem::ProblemBody;
use serde::Serialize;
use serde_json::{Value, json};

use crate::stitch::{Colour, GRIDS, MAX_CELL, MAX_GAP, MIN_CELL, StitchParams};
use crate::task::TaskType;
use crate::text::TextParams;
use crate::video::VideoParams;
use crate::{Error, Media, Result};

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
pub async fn list_features(_user: CurrentUser, State(state): State<Media>) -> Json<Vec<Feature>> {
    Json(features(&state))
}

/// Shows one thing that can be made.
#[utoipa::path(get, path = "/media/features/{feature_id}", tag = "media", params(("feature_id" = String, Path)), responses((status = 200, body = Feature), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn find_feature(
    _user: CurrentUser,
    State(state): State<Media>,
    Path(id): Path<String>,
) -> Result<Json<Feature>> {
    let feature = features(&state).into_iter().find(|one| one.id.name() == id);
    feature.map(Json).ok_or(Error::NoFeature)
}

/// What is made here, and what providers make.
fn features(state: &Media) -> Vec<Feature> {
    let elsewhere = [
        (
            TaskType::BasicClean,
            "Cut out a product",
            "image",
            "image/png",
        ),
        (
            TaskType::ModelPose12,
            "Twelve shots on a model",
            "image",
            "image/jpeg",
        ),
        (
            TaskType::VideoGenerate,
            "Generate a video",
            "video",
            "video/mp4",
        ),
    ];
    let offered = elsewhere
        .into_iter()
        .filter(|(kind, ..)| !state.providers.offering(*kind).is_empty());
    let elsewhere = offered.map(|(id, name, category, output_type)| {
        feature(id, name, category, output_type, json!({ "type": "object" }))
    });
    [stitch(), video(), text()]
        .into_iter()
        .chain(elsewhere)
        .collect()
}

fn feature(
    id: TaskType,
    name: &'static str,
    category: &'static str,
    output_type: &'static str,
    form_schema: Value,
) -> Feature {
    Feature {
        id,
        name,
        category,
        credit_cost: 0,
        rate_limit: None,
        output_type,
        form_schema,
        is_enabled: true,
    }
}

fn whole(least: u32, most: u32, default: u32) -> Value {
    json!({ "type": "integer", "minimum": least, "maximum": most, "default": default })
}

fn colour(default: Colour) -> Value {
    json!({ "type": "string", "pattern": "^#[0-9A-Fa-f]{6}$", "default": default })
}

fn stitch() -> Feature {
    let default = StitchParams::default();
    let grids = GRIDS
        .iter()
        .map(|(rows, columns)| json!({ "properties": { "rows": { "const": rows }, "columns": { "const": columns } } }));
    let lines = json!({ "properties": { "layout": { "enum": ["row", "column"] } }, "required": ["layout"] });
    let any: Vec<Value> = grids.chain([lines]).collect();
    let schema = json!({
        "type": "object",
        "properties": {
            "layout": { "enum": ["grid", "row", "column"], "default": "grid" },
            "rows": whole(2, 4, default.rows),
            "columns": whole(2, 4, default.columns),
            "cell": whole(MIN_CELL, MAX_CELL, default.cell),
            "gap": whole(0, MAX_GAP, default.gap),
            "background": colour(default.background),
            "quality": whole(1, 100, default.quality.into()),
            "format": { "enum": ["jpeg", "png", "webp"], "default": "jpeg" },
        },
        "anyOf": any,
    });
    feature(
        TaskType::ImageStitch,
        "Stitch pictures",
        "image",
        "image/jpeg",
        schema,
    )
}

fn video() -> Feature {
    let default = VideoParams::default();
    let schema = json!({
        "type": "object",
        "properties": {
            "width": whole(64, 1920, default.width),
            "height": whole(64, 1920, default.height),
            "frameRate": whole(1, 60, default.frame_rate),
            "pictureSeconds": { "type": "number", "minimum": 0.1, "maximum": 60, "default": default.picture_seconds },
            "fadeSeconds": { "type": "number", "minimum": 0, "maximum": 5, "default": default.fade_seconds },
            "caption": { "type": "string", "maxLength": 500, "default": default.caption },
            "captionSize": whole(8, 200, default.caption_size),
        },
    });
    feature(
        TaskType::VideoCompose,
        "Compose a video",
        "video",
        "video/mp4",
        schema,
    )
}

fn text() -> Feature {
    let default = TextParams::default();
    let line = json!({
        "type": "object",
        "properties": { "start": { "type": "number" }, "end": { "type": "number" }, "text": { "type": "string" } },
        "required": ["start", "end", "text"],
    });
    let schema = json!({
        "type": "object",
        "properties": {
            "mode": { "enum": ["text", "subtitles", "image"], "default": "text" },
            "template": { "type": "string", "description": "weekly_drop, product_showcase, or a text with {name} for values" },
            "values": { "type": "object", "additionalProperties": { "type": "string" } },
            "lines": { "type": "array", "items": line, "maxItems": 500 },
            "columns": { "type": "integer", "minimum": 8, "maximum": 200, "default": default.columns },
            "width": whole(64, 2048, default.width),
            "size": whole(8, 200, default.size),
            "colour": colour(default.colour),
            "background": colour(default.background),
        },
    });
    feature(
        TaskType::TextProcess,
        "Set a text",
        "text",
        "text/plain",
        schema,
    )
}

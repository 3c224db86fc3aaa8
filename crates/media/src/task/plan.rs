//! What a request for a task means, and everything that is wrong with it at once.

use garde::Validate;
use platform::Problem;
use platform::problem::FieldFault;
use serde::Deserialize;
use serde_json::Value;

use super::{Priority, TaskType};
use crate::stitch::StitchParams;

/// The most inputs of a task.
const MOST_INPUTS: usize = 16;
const LONGEST_INPUT: usize = 512;

/// A task to create.
#[derive(Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", default)]
#[garde(allow_unvalidated)]
pub struct CreateTask {
    /// What is to be made; only `image_stitch` is offered so far.
    #[serde(rename = "type")]
    #[schema(required)]
    pub kind: Option<TaskType>,
    /// Keys of stored uploads, 1 to 16, in the order of the cells.
    pub input_urls: Option<Vec<String>>,
    /// The same for a single one.
    pub input_url: Option<String>,
    /// How it is made.
    pub params: Option<StitchParams>,
    /// Who goes first; `normal` by default.
    pub priority: Option<Priority>,
    /// Not offered yet.
    pub feature_id: Option<Value>,
    /// Not offered yet.
    #[schema(value_type = Option<Vec<Object>>)]
    pub steps: Option<Value>,
}

/// A request that can be carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What is to be made.
    pub kind: TaskType,
    /// Who goes first.
    pub priority: Priority,
    /// The keys of the uploads it is made from.
    pub inputs: Vec<String>,
    /// How, defaults included.
    pub params: Value,
}

impl CreateTask {
    /// Reads the request.
    ///
    /// # Errors
    /// 400 with every field at fault.
    pub fn plan(self) -> Result<Plan, Problem> {
        let mut faults = Vec::new();
        let mut fault = |field: String, message: &str| {
            faults.push(FieldFault {
                field,
                message: message.to_owned(),
            });
        };
        match self.kind {
            Some(TaskType::ImageStitch) => {}
            Some(_) => fault(
                "type".to_owned(),
                "is not offered yet: only image_stitch is",
            ),
            None => fault("type".to_owned(), "is required: image_stitch"),
        }
        for (field, sent) in [("featureId", self.feature_id), ("steps", self.steps)] {
            if sent.is_some() {
                fault(field.to_owned(), "is not offered yet: send a type");
            }
        }
        let inputs = match (self.input_urls, self.input_url) {
            (Some(_), Some(_)) => {
                fault(
                    "inputUrl".to_owned(),
                    "stands beside inputUrls: send one of them",
                );
                Vec::new()
            }
            (Some(many), None) => many,
            (None, Some(one)) => vec![one],
            (None, None) => Vec::new(),
        };
        if inputs.is_empty() || inputs.len() > MOST_INPUTS {
            fault("inputUrls".to_owned(), "must be 1 to 16 keys of uploads");
        }
        for (index, input) in inputs.iter().enumerate() {
            let field = format!("inputUrls[{index}]");
            let begins = |scheme| {
                input
                    .get(..8.min(input.len()))
                    .is_some_and(|start| start.to_ascii_lowercase().starts_with(scheme))
            };
            if begins("http://") || begins("https://") {
                fault(
                    field,
                    "is a URL, which is not offered yet: send the key of an upload",
                );
            } else if input.is_empty() || input.len() > LONGEST_INPUT || input.contains('\0') {
                fault(field, "is not the key of an upload");
            }
        }
        let params = self.params.unwrap_or_default();
        faults.extend(params.faults());
        match self.kind {
            Some(kind) if faults.is_empty() => Ok(Plan {
                kind,
                priority: self.priority.unwrap_or_default(),
                inputs,
                params: serde_json::to_value(params).map_err(|_| Problem::internal())?,
            }),
            _ => Err(Problem::validation(faults)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: Value) -> Result<Plan, Vec<String>> {
        let body: CreateTask = serde_json::from_value(body).unwrap();
        body.plan()
            .map_err(|problem| problem.fields().map(str::to_owned).collect())
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let plan = read(json!({ "type": "image_stitch", "inputUrl": "input/u/1/a.png", "params": { "gap": 0 } })).unwrap();

        assert_eq!(plan.priority, Priority::Normal);
        assert_eq!(plan.inputs, ["input/u/1/a.png"]);
        assert_eq!(
            plan.params,
            json!({ "rows": 3, "columns": 4, "cell": 512, "gap": 0, "background": "#F5F5F5", "quality": 90 })
        );
    }

    #[test]
    fn every_fault_is_told() {
        let cases = [
            (json!({}), vec!["type", "inputUrls"]),
            (
                json!({ "type": "video_generate", "inputUrls": ["a"] }),
                vec!["type"],
            ),
            (
                json!({ "type": "image_stitch", "inputUrls": [] }),
                vec!["inputUrls"],
            ),
            (
                json!({ "type": "image_stitch", "inputUrls": vec!["a"; 17] }),
                vec!["inputUrls"],
            ),
            (
                json!({ "type": "image_stitch", "inputUrls": ["a", "HTTPS://x.y/z", "", "http://10.0.0.1"] }),
                vec!["inputUrls[1]", "inputUrls[2]", "inputUrls[3]"],
            ),
            (
                json!({ "type": "image_stitch", "inputUrls": ["a"], "inputUrl": "a" }),
                vec!["inputUrl", "inputUrls"],
            ),
            (
                json!({ "type": "image_stitch", "inputUrl": "a", "params": { "rows": 5 } }),
                vec!["params.rows"],
            ),
            (
                json!({ "featureId": "x", "steps": [], "inputUrl": "ä".repeat(9) }),
                vec!["type", "featureId", "steps"],
            ),
        ];
        for (body, fields) in cases {
            assert_eq!(
                read(body.clone()),
                Err(fields.into_iter().map(str::to_owned).collect()),
                "{body}"
            );
        }
    }

    #[test]
    fn any_body_is_a_plan_or_refused_by_field() {
        const WORDS: [&str; 20] = [
            "type",
            "kind",
            "provider",
            "inputs",
            "params",
            "rows",
            "columns",
            "cell",
            "gap",
            "quality",
            "background",
            "stitch",
            "image",
            "#ffffff",
            "5",
            "uploads",
            "input/u/t/a.png",
            "layout",
            "text",
            "video",
        ];
        bolero::check!()
            .with_iterations(1_000)
            .with_max_len(96)
            .for_each(|bytes: &[u8]| {
                let body = testkit::any::json(bytes, &WORDS);
                let Ok(task) = serde_json::from_value::<CreateTask>(body.clone()) else {
                    return;
                };
                if let Err(problem) = task.plan() {
                    let mut fields = problem.fields().peekable();
                    assert!(
                        fields.peek().is_some() && fields.all(|field| !field.is_empty()),
                        "{body}"
                    );
                }
            });
    }
}

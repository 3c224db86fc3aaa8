//! What a request for a task means, and everything that is wrong with it at once.

use std::time::Duration;

use chrono::TimeDelta;
use garde::Validate;
use platform::Problem;
use platform::outbound::Rules;
use platform::problem::FieldFault;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{LOCAL, Priority, TaskType};
use crate::Config;
use crate::job::is_url;
use crate::provider::Providers;
use crate::stitch::StitchParams;
use crate::text::TextParams;
use crate::video::VideoParams;

/// The most inputs of a task.
const MOST_INPUTS: usize = 16;
const LONGEST_INPUT: usize = 2048;
const MOST_STEPS: usize = 8;
const MOST_PARAMS: usize = 16 << 10;

/// A task to create.
#[derive(Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", default)]
#[garde(allow_unvalidated)]
pub struct CreateTask {
    /// What is to be made: this, `featureId` or `steps`.
    #[serde(rename = "type")]
    pub kind: Option<TaskType>,
    /// The same, by the id of a feature.
    pub feature_id: Option<TaskType>,
    /// A chain of 1 to 8: what a step makes is what the next one is made from.
    pub steps: Option<Vec<CreateStep>>,
    /// Keys of stored uploads, or URLs, 1 to 16, in their order; for texts they may be left out.
    pub input_urls: Option<Vec<String>>,
    /// The same for a single one.
    pub input_url: Option<String>,
    /// How it is made, as the feature's `formSchema` says; at most 16 KiB.
    #[schema(value_type = Option<Object>)]
    pub params: Option<Value>,
    /// Who goes first; `normal` by default.
    pub priority: Option<Priority>,
}

/// A step of a chain.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CreateStep {
    /// What it makes.
    #[serde(rename = "type")]
    pub kind: TaskType,
    /// How.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub params: Option<Value>,
}

/// What can be made.
#[derive(Clone, Copy)]
pub struct Offer<'a> {
    /// Which URLs may be named.
    pub rules: Rules,
    /// Who makes what is not made here.
    pub providers: &'a Providers,
}

/// A request that can be carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What is to be made: what the last step makes.
    pub kind: TaskType,
    /// Who goes first.
    pub priority: Priority,
    /// The keys of the uploads, and the URLs, it is made from.
    pub inputs: Vec<String>,
    /// How, defaults included; of a chain, its steps.
    pub params: Value,
    /// At least one.
    pub steps: Vec<PlannedStep>,
}

/// A step that can be carried out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedStep {
    /// What it makes.
    #[serde(rename = "type")]
    pub kind: TaskType,
    /// How, defaults included.
    pub params: Value,
    /// Who is asked first.
    #[serde(skip)]
    pub provider: String,
}

impl Offer<'_> {
    /// Who is asked first for a type; `None` where nobody makes it.
    fn provider(&self, kind: TaskType) -> Option<String> {
        let offering = self.providers.offering(kind);
        let first = offering.first().map(|one| one.name().to_owned());
        match kind.is_local() {
            true => Some(LOCAL.to_owned()),
            false => first,
        }
    }
}

impl Plan {
    /// How long after its creation it has to be done: as long as all steps together may take.
    pub fn span(&self, config: &Config) -> TimeDelta {
        let span = |step: &PlannedStep| match step.kind {
            TaskType::BasicClean => Duration::from_secs(300),
            TaskType::ModelPose12 => Duration::from_secs(600),
            TaskType::VideoGenerate => Duration::from_secs(7200),
            TaskType::ImageStitch => config.stitch_deadline,
            TaskType::VideoCompose => config.compose_deadline,
            TaskType::TextProcess => Duration::from_secs(30),
        };
        TimeDelta::from_std(self.steps.iter().map(span).sum()).unwrap_or(TimeDelta::days(1))
    }
}

impl CreateTask {
    /// Reads the request.
    ///
    /// # Errors
    /// 400 with every field at fault.
    pub fn plan(self, offer: &Offer<'_>) -> Result<Plan, Problem> {
        let mut faults = Vec::new();
        let mut fault = |field: String, message: &str| {
            faults.push(FieldFault {
                field,
                message: message.to_owned(),
            });
        };
        let is_chain = self.steps.is_some();
        let one = |kind| {
            vec![(
                "type".to_owned(),
                "params".to_owned(),
                kind,
                self.params.clone(),
            )]
        };
        let steps = match (self.kind, self.feature_id, self.steps) {
            (Some(kind), None, None) | (None, Some(kind), None) => one(kind),
            (None, None, Some(steps)) => {
                if steps.is_empty() || steps.len() > MOST_STEPS {
                    fault("steps".to_owned(), "must be 1 to 8");
                }
                let named = |(index, step): (usize, CreateStep)| {
                    let params = format!("steps[{index}].params");
                    (
                        format!("steps[{index}].type"),
                        params,
                        step.kind,
                        step.params,
                    )
                };
                steps
                    .into_iter()
                    .take(MOST_STEPS)
                    .enumerate()
                    .map(named)
                    .collect()
            }
            (None, None, None) => {
                fault("type".to_owned(), "is required, or featureId, or steps");
                Vec::new()
            }
            _ => {
                fault(
                    "type".to_owned(),
                    "stands beside featureId or steps: send one of them",
                );
                Vec::new()
            }
        };
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
        let needs_inputs = steps
            .first()
            .is_none_or(|step| step.2 != TaskType::TextProcess);
        if inputs.is_empty() && needs_inputs || inputs.len() > MOST_INPUTS {
            fault(
                "inputUrls".to_owned(),
                "must be 1 to 16 keys of uploads, or URLs",
            );
        }
        for (index, input) in inputs.iter().enumerate() {
            let field = format!("inputUrls[{index}]");
            if input.is_empty() || input.len() > LONGEST_INPUT || input.contains('\0') {
                fault(field, "is neither the key of an upload nor a URL");
            } else if is_url(input)
                && let Err(refusal) = offer.rules.url(input)
            {
                fault(field, &format!("must be one that {refusal}"));
            }
        }
        let mut planned = Vec::with_capacity(steps.len());
        for (field, params_field, kind, params) in steps {
            let Some(provider) = offer.provider(kind) else {
                fault(field, "is not offered: no provider makes it");
                continue;
            };
            match read_params(kind, params, &params_field) {
                Ok(params) => planned.push(PlannedStep {
                    kind,
                    params,
                    provider,
                }),
                Err(found) => found
                    .into_iter()
                    .for_each(|one| fault(one.field, &one.message)),
            }
        }
        let Some(last) = planned.last().filter(|_| faults.is_empty()) else {
            return Err(Problem::validation(faults));
        };
        Ok(Plan {
            kind: last.kind,
            priority: self.priority.unwrap_or_default(),
            inputs,
            params: match is_chain {
                true => json!({ "steps": planned }),
                false => last.params.clone(),
            },
            steps: planned,
        })
    }
}

/// Reads how a step is made, and fills in what was left out.
fn read_params(
    kind: TaskType,
    params: Option<Value>,
    field: &str,
) -> Result<Value, Vec<FieldFault>> {
    let params = params.unwrap_or_else(|| json!({}));
    let fault = |message: &str| {
        let message = message.to_owned();
        let field = field.to_owned();
        vec![FieldFault { field, message }]
    };
    if !params.is_object() || params.to_string().len() > MOST_PARAMS {
        return Err(fault("must be an object of at most 16 KiB"));
    }
    match kind {
        TaskType::ImageStitch => checked(params, field, StitchParams::faults),
        TaskType::VideoCompose => checked(params, field, VideoParams::faults),
        TaskType::TextProcess => checked(params, field, TextParams::faults),
        TaskType::BasicClean | TaskType::ModelPose12 | TaskType::VideoGenerate => Ok(params),
    }
}

fn checked<T: DeserializeOwned + Serialize>(
    params: Value,
    field: &str,
    faults: impl Fn(&T) -> Vec<FieldFault>,
) -> Result<Value, Vec<FieldFault>> {
    let fault = |path: String, message: String| {
        let field = match path.as_str() {
            "." => field.to_owned(),
            path => format!("{field}.{path}"),
        };
        vec![FieldFault { field, message }]
    };
    let read: T = serde_path_to_error::deserialize(params)
        .map_err(|error| fault(error.path().to_string(), error.inner().to_string()))?;
    let found = faults(&read);
    if !found.is_empty() {
        let named = |one: FieldFault| FieldFault {
            field: one.field.replacen("params", field, 1),
            ..one
        };
        return Err(found.into_iter().map(named).collect());
    }
    serde_json::to_value(read).map_err(|error| fault(".".to_owned(), error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Offer<'static> {
        static NOBODY: std::sync::LazyLock<Providers> =
            std::sync::LazyLock::new(Providers::default);
        Offer {
            rules: Rules {
                plain: true,
                loopback: false,
            },
            providers: &NOBODY,
        }
    }

    fn read(body: Value) -> Result<Plan, Vec<String>> {
        let body: CreateTask = serde_json::from_value(body).unwrap();
        body.plan(&offer())
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
                vec!["inputUrls[2]", "inputUrls[3]"],
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
                json!({ "featureId": "image_stitch", "steps": [], "inputUrl": "ä".repeat(9) }),
                vec!["type"],
            ),
            (
                json!({ "steps": [{ "type": "image_stitch", "params": { "rows": "x" } }, { "type": "basic_clean" }], "inputUrl": "a" }),
                vec!["steps[0].params.rows", "steps[1].type"],
            ),
            (json!({ "steps": [], "inputUrl": "a" }), vec!["steps"]),
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
                if let Err(problem) = task.plan(&offer()) {
                    let mut fields = problem.fields().peekable();
                    assert!(
                        fields.peek().is_some() && fields.all(|field| !field.is_empty()),
                        "{body}"
                    );
                }
            });
    }
}

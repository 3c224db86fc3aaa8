//! The object store: whether what is written there can be read and deleted.

use devices::node::check::{Check, Standing};
use platform::Settings;
use platform::config::ObjectsAt;
use platform::objects::{ObjectError, Objects};
use platform::problem::causes;
use uuid::Uuid;

/// What is found.
pub async fn examine(settings: &Settings) -> Vec<Check> {
    let (place, advice) = match &settings.objects {
        ObjectsAt::Folder(folder) => (
            folder.display().to_string(),
            "let the user of the replicas write OBJECTS_FOLDER, on a disk with room, the same one for all replicas",
        ),
        ObjectsAt::S3(bucket) => (
            format!("the bucket {}", bucket.name),
            "correct OBJECTS_S3_*: the bucket must be there, and the key be allowed to list, read, write and delete",
        ),
    };
    let tried = async {
        let objects = Objects::open(&settings.objects).map_err(|error| format!("{error:#}"))?;
        round_trip(&objects).await.map_err(|error| causes(&error))
    };
    let check = match tried.await {
        Ok(true) => Check::new(
            "objects",
            Standing::Ok,
            format!("{place}: written, read, deleted"),
            "",
        ),
        Ok(false) => Check::new(
            "objects",
            Standing::Fail,
            format!("{place}: other bytes came back"),
            advice,
        ),
        Err(why) => Check::new("objects", Standing::Fail, format!("{place}: {why}"), advice),
    };
    vec![check]
}

async fn round_trip(objects: &Objects) -> Result<bool, ObjectError> {
    const WORDS: &[u8] = b"written by gateway doctor";
    let key = format!("doctor/{}", Uuid::new_v4());
    objects.put(&key, WORDS.into()).await?;
    let read = objects.bytes(&key).await;
    objects.delete(&key).await?;
    Ok(read? == WORDS)
}

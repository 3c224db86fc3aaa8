//! The tour that the documentation offers.

#[expect(dead_code, reason = "its main is for those who run it by hand")]
#[path = "../../examples/tour.rs"]
mod example;

use sqlx::PgPool;

use crate::stores::{redis_url, stores};

#[sqlx::test(migrations = "../../migrations")]
async fn the_tour_of_the_documentation_can_be_taken(db: PgPool) {
    let stores = stores().await;
    let stores = example::Stores {
        redis: example::connect(&redis_url()).await.unwrap(),
        redis_url: redis_url(),
        db,
        keys: stores.keys,
    };

    example::take(&stores).await.unwrap();
}

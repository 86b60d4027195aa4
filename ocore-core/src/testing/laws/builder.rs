//! The laws of [`Builder`].

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;

use super::{
    caller::{Caller, drop_early, eventually, leftovers},
    declare_laws,
};
use crate::{
    environment::{Environment, EnvironmentSpec, InstanceSpec},
    port::{Builder, Checkout, ErrorKind},
    release::Image,
};

declare_laws! {
    $
    /// Expands to one test per law of the builder. Takes an expression that makes a
    /// [`BuilderFixture`](crate::testing::laws::builder::BuilderFixture) with nothing built; it may `await`.
    builder_laws, builder, [
        what_is_built_is_found,
        an_image_is_named_after_deployment_and_fence,
        an_image_does_not_need_the_checkout,
        building_again_finds_or_builds,
        what_cannot_be_built_says_why_and_leaves_nothing,
        a_cancelled_build_leaves_nothing,
        a_dropped_build_leaves_nothing_unfinished,
        removing_twice_succeeds,
        removing_one_image_spares_the_others,
        an_image_of_nobody_is_not_found,
        a_damaged_image_is_not_found,
        a_sweep_removes_what_no_record_names_and_nothing_else,
    ]
}

/// A builder, and something to build.
#[async_trait]
pub trait BuilderFixture: Send + Sync {
    /// The builder.
    fn builder(&self) -> &dyn Builder;
    /// A fresh checkout that can be built. What its path holds is the fixture's own.
    fn checkout(&self) -> Checkout;
    /// A fresh checkout that can not be built, however often it is tried.
    fn unbuildable(&self) -> Checkout;
    /// The names of everything that the builder has made and that is still there, unfinished things included.
    async fn made(&self) -> BTreeSet<String>;
    /// Damages an image in a way that the builder must notice; `false` where that cannot be done.
    async fn damage(&self, image: &Image) -> bool;
    /// Whether the builder removes what killed workers have left.
    fn sweeps(&self) -> bool {
        true
    }
}

/// Calls for an environment that has nothing of its own.
fn caller() -> Caller {
    let spec = EnvironmentSpec::new("laws", "https://git.example.org/laws.git");
    let spec = spec.instance(InstanceSpec::new("web"));
    Caller::new(Arc::new(Environment::try_from(spec).expect("the environment of the laws is valid")))
}

async fn build(fixture: &impl BuilderFixture, deployment: u128, fence: u64) -> Image {
    let context = caller().call(deployment, fence);
    fixture.builder().build(&context, &fixture.checkout()).await.expect("the checkout can be built")
}

async fn is_there(fixture: &impl BuilderFixture, image: &Image) -> bool {
    fixture.builder().locate(&caller().call(9, 9), image).await.expect("an image can be looked for")
}

/// *Called first*: the image is there when the call returns.
pub async fn what_is_built_is_found(fixture: impl BuilderFixture) {
    let image = build(&fixture, 1, 1).await;
    assert!(is_there(&fixture, &image).await, "the image that was built is not found");
}

/// Two attempts never share a name, so that a late one cannot overwrite what counts.
pub async fn an_image_is_named_after_deployment_and_fence(fixture: impl BuilderFixture) {
    let mut names = BTreeSet::new();
    for (deployment, fence) in [(1, 1), (1, 2), (2, 3)] {
        let image = build(&fixture, deployment, fence).await;
        assert!(names.insert(image.reference.clone()), "{} was given twice", image.reference);
    }
    for name in names {
        assert!(is_there(&fixture, &Image::new(name)).await, "a later build has removed an earlier image");
    }
}

/// The checkout is discarded after the build.
pub async fn an_image_does_not_need_the_checkout(fixture: impl BuilderFixture) {
    let checkout = fixture.checkout();
    let image = fixture.builder().build(&caller().call(1, 1), &checkout).await;
    let image = image.expect("the checkout can be built");
    if checkout.path.exists() {
        std::fs::remove_dir_all(&checkout.path).expect("the checkout can be removed");
    }
    assert!(is_there(&fixture, &image).await, "the image has gone with its checkout");
}

/// *Called again*: builds again, or finds what an earlier call finished.
pub async fn building_again_finds_or_builds(fixture: impl BuilderFixture) {
    let first = build(&fixture, 1, 1).await;
    let again = build(&fixture, 1, 1).await;
    assert!(is_there(&fixture, &again).await, "the second call's image is not found");
    assert_eq!(again, first, "the same call on the same files gives the same image");
}

/// *Errors*: permanent, with words; nothing half-built stays.
pub async fn what_cannot_be_built_says_why_and_leaves_nothing(fixture: impl BuilderFixture) {
    let before = fixture.made().await;
    let result = fixture.builder().build(&caller().call(1, 1), &fixture.unbuildable()).await;
    let error = result.expect_err("what cannot be built gives an error");
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert!(!error.to_string().trim().is_empty(), "the error says nothing");
    assert_eq!(fixture.made().await, before, "something stays of a build that failed");
}

/// A cancelled call stops, says so, and leaves nothing.
pub async fn a_cancelled_build_leaves_nothing(fixture: impl BuilderFixture) {
    let before = fixture.made().await;
    let result = fixture.builder().build(&caller().cancelled(1, 1), &fixture.checkout()).await;
    let error = result.expect_err("a cancelled build gives no image");
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert_eq!(fixture.made().await, before, "something stays of a build that was cancelled");
}

/// A call whose future is dropped stops; the next call removes what it could not remove itself.
pub async fn a_dropped_build_leaves_nothing_unfinished(fixture: impl BuilderFixture) {
    let checkout = fixture.checkout();
    // More than once and with the same fence, as it happens to a call that takes too long: its thread may be at work.
    for _ in 0..3 {
        drop_early(fixture.builder().build(&caller().call(1, 1), &checkout)).await;
    }
    let again = build(&fixture, 1, 1).await;
    let image = build(&fixture, 1, 2).await;
    let finished = BTreeSet::from([image.reference.clone(), again.reference]);
    assert!(is_there(&fixture, &image).await, "the build after a dropped one is not found");
    let is_finished = || async { fixture.made().await.is_subset(&finished) };
    eventually("nothing of the dropped build stays", is_finished).await;
}

/// *Called again*: succeeds if it is gone.
pub async fn removing_twice_succeeds(fixture: impl BuilderFixture) {
    let image = build(&fixture, 1, 1).await;
    for _ in 0..2 {
        fixture.builder().remove(&caller().call(1, 1), &image).await.expect("an image can be removed twice");
        assert!(!is_there(&fixture, &image).await, "a removed image is still found");
    }
    assert_eq!(fixture.made().await, BTreeSet::new(), "something stays of an image that was removed");
}

/// *Must not* touch other images.
pub async fn removing_one_image_spares_the_others(fixture: impl BuilderFixture) {
    let (one, other) = (build(&fixture, 1, 1).await, build(&fixture, 1, 2).await);
    fixture.builder().remove(&caller().call(1, 2), &one).await.expect("an image can be removed");
    assert!(is_there(&fixture, &other).await, "another image was removed as well");
}

/// A name that no image has is not there; that is an answer and no error.
pub async fn an_image_of_nobody_is_not_found(fixture: impl BuilderFixture) {
    let image = build(&fixture, 1, 1).await;
    let other = Image { reference: format!("{}0", image.reference), ..image };
    assert!(!is_there(&fixture, &other).await, "an image is found that nobody built");
}

/// An image that is incomplete is not there: a rollback must not start it.
pub async fn a_damaged_image_is_not_found(fixture: impl BuilderFixture) {
    let image = build(&fixture, 1, 1).await;
    if fixture.damage(&image).await {
        assert!(!is_there(&fixture, &image).await, "a damaged image is found");
        let again = build(&fixture, 1, 1).await;
        assert!(is_there(&fixture, &again).await, "a damaged image was not built again");
    }
}

/// What a worker made that was killed before it could record it is removed when its deployment is over.
pub async fn a_sweep_removes_what_no_record_names_and_nothing_else(fixture: impl BuilderFixture) {
    if !fixture.sweeps() {
        return;
    }
    drop_early(fixture.builder().build(&caller().call(1, 1), &fixture.checkout())).await;
    build(&fixture, 1, 2).await;
    let (recorded, other) = (build(&fixture, 1, 3).await, build(&fixture, 2, 4).await);
    let leftovers = leftovers(&[1, 3], [&recorded.reference]);
    let kept = BTreeSet::from([recorded.reference, other.reference]);
    let swept = || async {
        let swept = fixture.builder().sweep(&caller().call(1, 4), &leftovers).await;
        swept.expect("leftovers can be removed");
        fixture.made().await == kept
    };
    eventually("what is left is removed, and nothing else", swept).await;
    assert!(swept().await, "another sweep removes something else");
}

#[cfg(test)]
mod tests;

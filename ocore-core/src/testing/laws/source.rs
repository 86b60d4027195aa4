//! The laws of the source: what every implementation must do.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

use super::declare_laws;
use crate::{
    environment::Environment,
    event::{Progress, Stream},
    id::{DeploymentId, Fence},
    name::InstanceName,
    port::{Checkout, Context, ErrorKind, Sink, Source},
    release::Commit,
    request::Revision,
    secret::Secret,
};

/// A source under test, and a repository that it can reach and the law can change.
#[async_trait]
pub trait SourceFixture: Send + Sync {
    /// The source.
    fn source(&self) -> &dyn Source;

    /// An environment whose repository is the fixture's. It is empty at first.
    fn environment(&self) -> Arc<Environment>;

    /// Adds a commit to a branch, on top of what the branch has, and gives its full id. Its tree has exactly
    /// these files, by path; its author and committer is "Ada <ada@example.org>", at [`committed_at`].
    async fn commit(&self, branch: &str, message: &str, files: &[(&str, &str)]) -> String;

    /// Makes a branch lead to a commit, whatever it led to before: a forced push.
    async fn force(&self, branch: &str, sha: &str);

    /// Makes a tag with a message of its own, where the repository knows such tags.
    async fn tag(&self, name: &str, sha: &str);

    /// What a checkout holds, by path, with everything that is in its directory; nothing if it is gone.
    async fn files(&self, checkout: &Checkout) -> Option<BTreeMap<String, String>>;
}

/// When the commits of a fixture are made.
#[must_use]
pub fn committed_at() -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000, 0).expect("the moment is in chrono's range")
}

declare_laws!($
    /// One test per law of the source: `source_laws!(fixture().await)`, where the expression is evaluated in each
    /// test, inside of a tokio runtime, and is a [`SourceFixture`](crate::testing::laws::source::SourceFixture).
    source_laws, source, [
        a_branch_resolves_to_its_head,
        a_branch_that_moved_is_seen_by_the_next_fetch,
        a_tag_resolves_to_its_commit,
        a_commit_is_found_by_its_whole_and_its_short_id,
        a_commit_carries_its_message_author_and_time,
        what_is_not_there_is_permanent,
        a_checkout_has_exactly_the_commits_files,
        a_checkout_is_of_the_commit_not_of_the_branch,
        a_checkout_fetches_a_commit_that_is_not_here,
        a_second_checkout_has_the_same_files,
        checkouts_of_two_deployments_are_apart,
        a_discarded_checkout_is_gone,
        a_cancelled_call_answers_that_it_was_cancelled,
        a_dropped_call_does_no_harm,
    ]
);

struct Silent;

impl Sink for Silent {
    fn log(&self, _: Option<&InstanceName>, _: Stream, _: &str) {}
    fn progress(&self, _: Option<&InstanceName>, _: Progress) {}
    fn hide(&self, _: &Secret) {}
}

fn context_of(fixture: &dyn SourceFixture, deployment: u128, token: CancellationToken) -> Context {
    let deployment = DeploymentId::from_u128(deployment);
    Context::new(deployment, fixture.environment(), Fence::new(1), token, Arc::new(Silent))
}

fn context(fixture: &dyn SourceFixture) -> Context {
    context_of(fixture, 1, CancellationToken::new())
}

fn branch(name: &str) -> Revision {
    Revision::Branch(name.to_owned())
}

async fn head(fixture: &dyn SourceFixture, name: &str) -> Commit {
    fixture.source().fetch(&context(fixture), &branch(name)).await.expect("the branch can be fetched")
}

fn owned(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

/// A branch resolves to its head, and not to another branch's.
pub async fn a_branch_resolves_to_its_head(fixture: impl SourceFixture) {
    let main = fixture.commit("main", "one", &[("a", "1")]).await;
    let other = fixture.commit("feature/other", "two", &[("a", "2")]).await;
    assert_eq!(head(&fixture, "main").await.sha, main);
    assert_eq!(head(&fixture, "feature/other").await.sha, other);
}

/// Each fetch sees where the branch is then, after a forced push too.
pub async fn a_branch_that_moved_is_seen_by_the_next_fetch(fixture: impl SourceFixture) {
    let first = fixture.commit("main", "one", &[("a", "1")]).await;
    assert_eq!(head(&fixture, "main").await.sha, first);
    let second = fixture.commit("main", "two", &[("a", "2")]).await;
    assert_eq!(head(&fixture, "main").await.sha, second);
    fixture.force("main", &first).await;
    assert_eq!(head(&fixture, "main").await.sha, first, "after a forced push");
}

/// A tag resolves to the commit, not to the tag's own object, and not to a branch of this name.
pub async fn a_tag_resolves_to_its_commit(fixture: impl SourceFixture) {
    let first = fixture.commit("main", "one", &[("a", "1")]).await;
    fixture.tag("v1.0", &first).await;
    fixture.commit("v1.0", "a branch of the same name", &[("a", "2")]).await;
    let found = fixture.source().fetch(&context(&fixture), &Revision::Tag("v1.0".to_owned())).await;
    assert_eq!(found.expect("the tag can be fetched").sha, first);
}

/// A commit is found by all digits of its id, and by the first seven; the answer has all digits.
pub async fn a_commit_is_found_by_its_whole_and_its_short_id(fixture: impl SourceFixture) {
    let first = fixture.commit("main", "one", &[("a", "1")]).await;
    fixture.commit("main", "two", &[("a", "2")]).await;
    for text in [&first[..], &first[..7], &first[..12], &first.to_uppercase()[..10]] {
        let found = fixture.source().fetch(&context(&fixture), &Revision::Commit(text.to_owned())).await;
        assert_eq!(found.expect("the commit can be found").sha, first, "by {text}");
    }
}

/// The commit's first line, its author's name without the address, and its time come with it.
pub async fn a_commit_carries_its_message_author_and_time(fixture: impl SourceFixture) {
    fixture.commit("main", "Sell apples\n\nand pears", &[("a", "1")]).await;
    let found = head(&fixture, "main").await;
    assert_eq!((found.summary.as_str(), found.author.as_str()), ("Sell apples", "Ada"));
    assert_eq!(found.time, committed_at());
}

/// What does not exist, or cannot, is a permanent error that names it.
pub async fn what_is_not_there_is_permanent(fixture: impl SourceFixture) {
    fixture.commit("main", "one", &[("a", "1")]).await;
    let missing = [
        branch("nowhere"),
        Revision::Tag("main".to_owned()),
        Revision::Commit("0123456789012345678901234567890123456789".to_owned()),
        Revision::Commit("0123456".to_owned()),
        branch("../main"),
        Revision::Commit("main".to_owned()),
    ];
    for revision in missing {
        let error = fixture.source().fetch(&context(&fixture), &revision).await;
        let error = error.expect_err("what is not there is not found");
        assert_eq!(error.kind(), ErrorKind::Permanent, "{revision}: {error}");
        assert!(error.to_string().contains(revision.as_str()), "{error} does not name {revision}");
    }
}

/// A checkout has the commit's files, with their content, and nothing else: no metadata, no file of an earlier commit.
pub async fn a_checkout_has_exactly_the_commits_files(fixture: impl SourceFixture) {
    fixture.commit("main", "one", &[("gone", "x"), ("a", "1")]).await;
    let files = [("a", "2"), ("empty", ""), ("deep/er/file.txt", "line\nline\n"), (".hidden", "x")];
    fixture.commit("main", "two", &files).await;
    let context = context(&fixture);
    let commit = head(&fixture, "main").await;
    let checkout = fixture.source().checkout(&context, &commit).await.expect("the commit can be checked out");
    assert_eq!(checkout.commit, commit);
    assert_eq!(fixture.files(&checkout).await, Some(owned(&files)));
}

/// Between fetch and checkout the branch may move: the commit counts.
pub async fn a_checkout_is_of_the_commit_not_of_the_branch(fixture: impl SourceFixture) {
    let first = fixture.commit("main", "one", &[("a", "1")]).await;
    let commit = head(&fixture, "main").await;
    let other = fixture.commit("other", "elsewhere", &[("a", "3")]).await;
    fixture.force("main", &other).await;
    assert_eq!(head(&fixture, "main").await.sha, other);
    let checkout = fixture.source().checkout(&context(&fixture), &commit).await;
    let checkout = checkout.expect("what was fetched can be checked out");
    assert_eq!(checkout.commit.sha, first);
    assert_eq!(fixture.files(&checkout).await, Some(owned(&[("a", "1")])));
}

/// A commit that was fetched elsewhere, by another worker, is fetched by the checkout.
pub async fn a_checkout_fetches_a_commit_that_is_not_here(fixture: impl SourceFixture) {
    let sha = fixture.commit("main", "one", &[("a", "1")]).await;
    let commit = Commit::new(&sha, "one", "Ada", committed_at());
    let checkout = fixture.source().checkout(&context(&fixture), &commit).await;
    let checkout = checkout.expect("the checkout fetches the commit");
    assert_eq!(fixture.files(&checkout).await, Some(owned(&[("a", "1")])));
    let missing = Commit::new("0123456789012345678901234567890123456789", "", "", committed_at());
    let error = fixture.source().checkout(&context(&fixture), &missing).await;
    assert_eq!(error.expect_err("there is no such commit").kind(), ErrorKind::Permanent);
}

/// A second checkout under the same fence replaces the first; a discard makes room for another.
pub async fn a_second_checkout_has_the_same_files(fixture: impl SourceFixture) {
    fixture.commit("main", "one", &[("a", "1"), ("b/c", "2")]).await;
    let (context, commit) = (context(&fixture), head(&fixture, "main").await);
    let first = fixture.source().checkout(&context, &commit).await.expect("the commit can be checked out");
    let second = fixture.source().checkout(&context, &commit).await.expect("it can be checked out again");
    let expected = Some(owned(&[("a", "1"), ("b/c", "2")]));
    assert_eq!(fixture.files(&second).await, expected);
    fixture.source().discard(&context, first).await.expect("it can be discarded");
    let third = fixture.source().checkout(&context, &commit).await.expect("it can be checked out anew");
    assert_eq!(fixture.files(&third).await, expected);
}

/// Two deployments have a directory each: discarding one leaves the other.
pub async fn checkouts_of_two_deployments_are_apart(fixture: impl SourceFixture) {
    fixture.commit("main", "one", &[("a", "1")]).await;
    let commit = head(&fixture, "main").await;
    let other = context_of(&fixture, 2, CancellationToken::new());
    let source = fixture.source();
    let first = source.checkout(&context(&fixture), &commit).await.expect("the commit can be checked out");
    let second = source.checkout(&other, &commit).await.expect("another deployment can check it out");
    assert_ne!(first.path, second.path);
    source.discard(&context(&fixture), first).await.expect("it can be discarded");
    assert_eq!(fixture.files(&second).await, Some(owned(&[("a", "1")])));
}

/// A discarded checkout is gone; discarding it again succeeds.
pub async fn a_discarded_checkout_is_gone(fixture: impl SourceFixture) {
    fixture.commit("main", "one", &[("a", "1")]).await;
    let (context, commit) = (context(&fixture), head(&fixture, "main").await);
    let checkout = fixture.source().checkout(&context, &commit).await.expect("the commit can be checked out");
    for time in ["once", "twice"] {
        fixture.source().discard(&context, checkout.clone()).await.expect("it can be discarded");
        assert_eq!(fixture.files(&checkout).await, None, "discarded {time}");
    }
}

/// A call whose context is cancelled says so, and not that something is wrong.
pub async fn a_cancelled_call_answers_that_it_was_cancelled(fixture: impl SourceFixture) {
    fixture.commit("main", "one", &[("a", "1")]).await;
    let commit = head(&fixture, "main").await;
    let token = CancellationToken::new();
    let cancelled = context_of(&fixture, 1, token.clone());
    token.cancel();
    let error = fixture.source().fetch(&cancelled, &branch("main")).await;
    assert_eq!(error.expect_err("a cancelled fetch fails").kind(), ErrorKind::Cancelled);
    let error = fixture.source().checkout(&cancelled, &commit).await;
    assert_eq!(error.expect_err("a cancelled checkout fails").kind(), ErrorKind::Cancelled);
    let checkout = fixture.source().checkout(&context(&fixture), &commit).await;
    checkout.expect("the next one is not disturbed");
}

/// A call that is dropped, wherever it has come to, disturbs no later one.
pub async fn a_dropped_call_does_no_harm(fixture: impl SourceFixture) {
    let mut sha = String::new();
    for polls in 0..8 {
        let text = polls.to_string();
        sha = fixture.commit("main", &text, &[("a", &text)]).await;
        let (context, revision) = (context(&fixture), branch("main"));
        poll_then_drop(fixture.source().fetch(&context, &revision), polls).await;
        let commit = Commit::new(&sha, &text, "Ada", committed_at());
        poll_then_drop(fixture.source().checkout(&context, &commit), polls).await;
    }
    let commit = head(&fixture, "main").await;
    assert_eq!(commit.sha, sha);
    let checkout = fixture.source().checkout(&context(&fixture), &commit).await;
    let checkout = checkout.expect("the commit can be checked out");
    assert_eq!(fixture.files(&checkout).await, Some(owned(&[("a", "7")])));
}

/// Polls a future at most so many times, each time when it has been woken, then drops it.
async fn poll_then_drop<T>(call: impl Future<Output = T>, polls: u32) {
    let (mut call, mut left) = (std::pin::pin!(call), polls);
    std::future::poll_fn(|wake| {
        if left == 0 || call.as_mut().poll(wake).is_ready() {
            return std::task::Poll::Ready(());
        }
        left -= 1;
        std::task::Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests;

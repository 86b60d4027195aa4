//! Every law is seen to fail, against a builder that breaks exactly it.

use std::{
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use chrono::DateTime;

use super::*;
use crate::{
    port::{Context, Error, Leftovers, Result},
    release::Commit,
    testing::laws::run,
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    ForgetsWhatItBuilt,
    NamesWithoutFence,
    NeedsTheCheckout,
    BuildsAgainUnderAnotherName,
    LeavesWhatFailed,
    CallsWhatFailsTransient,
    IgnoresCancels,
    LeavesHalf,
    CannotRemoveTwice,
    RemovesAll,
    FindsAnything,
    OverlooksDamage,
    SweepsNothing,
    SweepsWhatIsRecorded,
    SweepsWhatIsOpen,
}

struct Fake {
    bug: Bug,
    root: PathBuf,
    checkouts: AtomicU64,
    made: Mutex<BTreeSet<String>>,
    damaged: Mutex<BTreeSet<String>>,
    calls: AtomicU64,
}

fn fake(bug: Bug) -> Fake {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let root = std::env::temp_dir().join(format!("ocore-builder-laws-{}-{number}", std::process::id()));
    let (made, damaged) = (Mutex::default(), Mutex::default());
    Fake { bug, root, checkouts: AtomicU64::new(0), made, damaged, calls: AtomicU64::new(0) }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.root));
    }
}

impl Fake {
    fn new_checkout(&self) -> Checkout {
        let path = self.root.join(self.checkouts.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir_all(&path).unwrap();
        Checkout::new(path, Commit::new(&"a".repeat(40), "commit", "author", DateTime::UNIX_EPOCH))
    }
}

#[async_trait]
impl Builder for Fake {
    async fn build(&self, context: &Context, checkout: &Checkout) -> Result<Image> {
        let mut name = format!("{}-{}", context.deployment(), context.fence());
        if self.bug == Bug::NamesWithoutFence {
            name = context.deployment().to_string();
        }
        if self.bug == Bug::BuildsAgainUnderAnotherName {
            name += &format!("-{}", self.calls.fetch_add(1, Ordering::Relaxed));
        }
        if context.is_cancelled() && self.bug != Bug::IgnoresCancels {
            return Err(Error::cancelled());
        }
        if checkout.path.ends_with("unbuildable") {
            if self.bug == Bug::LeavesWhatFailed {
                self.made.lock().unwrap().insert("half".to_owned());
            }
            if self.bug == Bug::CallsWhatFailsTransient {
                return Err(Error::transient("no"));
            }
            return Err(Error::permanent("there is nothing to build"));
        }
        if self.bug == Bug::LeavesHalf {
            self.made.lock().unwrap().insert(format!("{name}.half"));
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        if self.bug == Bug::LeavesHalf {
            // Of the calls that end, nothing is left.
            self.made.lock().unwrap().remove(&format!("{name}.half"));
            if context.fence().get() == 1 {
                self.made.lock().unwrap().insert(format!("{name}.half"));
            }
        }
        self.damaged.lock().unwrap().remove(&name);
        if self.bug != Bug::ForgetsWhatItBuilt {
            self.made.lock().unwrap().insert(name.clone());
        }
        Ok(Image::new(name).with_setting("checkout", checkout.path.to_string_lossy()))
            .map(|image| if self.bug == Bug::NeedsTheCheckout { image } else { Image::new(image.reference) })
    }

    async fn locate(&self, _context: &Context, image: &Image) -> Result<bool> {
        if self.bug == Bug::FindsAnything {
            return Ok(true);
        }
        let checkout = image.settings.get("checkout").map(PathBuf::from);
        let damaged =
            self.damaged.lock().unwrap().contains(&image.reference) && self.bug != Bug::OverlooksDamage;
        let made = self.made.lock().unwrap().contains(&image.reference);
        Ok(made && !damaged && checkout.is_none_or(|checkout| checkout.exists()))
    }

    async fn remove(&self, _context: &Context, image: &Image) -> Result<()> {
        let was_there = self.made.lock().unwrap().remove(&image.reference);
        if self.bug == Bug::RemovesAll {
            self.made.lock().unwrap().clear();
        }
        if !was_there && self.bug == Bug::CannotRemoveTwice {
            return Err(Error::permanent("it is not there"));
        }
        Ok(())
    }

    async fn sweep(&self, _context: &Context, leftovers: &Leftovers) -> Result<()> {
        let made_for = |name: &str| name.get(..36).and_then(|id| id.parse().ok());
        self.made.lock().unwrap().retain(|name| match self.bug {
            Bug::SweepsNothing => true,
            Bug::SweepsWhatIsRecorded => !made_for(name).is_some_and(|id| leftovers.ended.contains(&id)),
            Bug::SweepsWhatIsOpen => leftovers.recorded.contains(name),
            _ => !made_for(name).is_some_and(|id| leftovers.include(id, name)),
        });
        Ok(())
    }
}

#[async_trait]
impl BuilderFixture for Fake {
    fn builder(&self) -> &dyn Builder {
        self
    }
    fn checkout(&self) -> Checkout {
        self.new_checkout()
    }
    fn unbuildable(&self) -> Checkout {
        let checkout = self.new_checkout();
        Checkout::new(checkout.path.join("unbuildable"), checkout.commit)
    }
    async fn made(&self) -> BTreeSet<String> {
        self.made.lock().unwrap().clone()
    }
    async fn damage(&self, image: &Image) -> bool {
        self.damaged.lock().unwrap().insert(image.reference.clone())
    }
}

mod a_good_builder {
    use super::{Bug, fake};
    builder_laws!(fake(Bug::None));
}

macro_rules! seen_to_fail {
    ($($bug:ident: $law:ident,)*) => {
        mod seen_to_fail {
            $(
                #[expect(non_snake_case, reason = "named after the bug")]
                mod $bug {
                    #[test]
                    #[should_panic]
                    fn $law() {
                        super::super::run(super::super::super::$law(super::super::fake(super::super::Bug::$bug)));
                    }
                }
            )*
        }
    };
}

seen_to_fail! {
    ForgetsWhatItBuilt: what_is_built_is_found,
    NamesWithoutFence: an_image_is_named_after_deployment_and_fence,
    NeedsTheCheckout: an_image_does_not_need_the_checkout,
    BuildsAgainUnderAnotherName: building_again_finds_or_builds,
    LeavesWhatFailed: what_cannot_be_built_says_why_and_leaves_nothing,
    CallsWhatFailsTransient: what_cannot_be_built_says_why_and_leaves_nothing,
    IgnoresCancels: a_cancelled_build_leaves_nothing,
    LeavesHalf: a_dropped_build_leaves_nothing_unfinished,
    CannotRemoveTwice: removing_twice_succeeds,
    RemovesAll: removing_one_image_spares_the_others,
    FindsAnything: an_image_of_nobody_is_not_found,
    OverlooksDamage: a_damaged_image_is_not_found,
    SweepsNothing: a_sweep_removes_what_no_record_names_and_nothing_else,
    SweepsWhatIsRecorded: a_sweep_removes_what_no_record_names_and_nothing_else,
    SweepsWhatIsOpen: a_sweep_removes_what_no_record_names_and_nothing_else,
}

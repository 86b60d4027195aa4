use async_trait::async_trait;

use super::{Checkout, Context, Leftovers, Result};
use crate::release::Image;

/// Makes an image of a checkout.
///
/// *Laws*: `builder_laws!` in the `testing` feature.
#[async_trait]
pub trait Builder: Send + Sync + 'static {
    /// Builds. The image is named after [`Context::deployment`] and [`Context::fence`]; it does not change
    /// afterwards and does not need the checkout any more. The output goes to the context, line by line.
    ///
    /// *Called again*: builds again, or finds what an earlier call finished.
    ///
    /// *Errors*: a repository that cannot be built: permanent, with the last lines of the output.
    ///
    /// *Must not* leave a half-built image under the final name, or a secret in the image.
    async fn build(&self, context: &Context, checkout: &Checkout) -> Result<Image>;

    /// Whether the image is there and complete.
    async fn locate(&self, context: &Context, image: &Image) -> Result<bool>;

    /// Removes the image.
    ///
    /// *Called again*: succeeds if it is gone.
    ///
    /// *Must not* touch what this builder has not made.
    async fn remove(&self, context: &Context, image: &Image) -> Result<()>;

    /// Removes the images, finished or not, that these leftovers include. [`Context::deployment`] is one of the
    /// deployments that are over, and says nothing more.
    ///
    /// Unless a builder says otherwise, nothing is removed: then a worker that is killed may leave an image for ever.
    ///
    /// *Called again*: removes what has been left since.
    ///
    /// *Must not* touch anything else: an image is built for another deployment meanwhile.
    async fn sweep(&self, _context: &Context, _leftovers: &Leftovers) -> Result<()> {
        Ok(())
    }
}

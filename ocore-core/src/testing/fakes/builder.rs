use async_trait::async_trait;

use super::{
    World,
    world::{Update, fake},
};
use crate::{
    event::Stream,
    port::{Builder, Checkout, Context, Error, Leftovers, Result},
    release::Image,
};

fake! {
    /// Makes images that are names in the world.
    FakeBuilder
}

#[async_trait]
impl Builder for FakeBuilder {
    async fn build(&self, context: &Context, checkout: &Checkout) -> Result<Image> {
        let (sha, behaviour, secret) = {
            let inner = self.world.lock();
            let sha = checkout.commit.sha.clone();
            (sha.clone(), inner.behaviour(&sha), inner.secret.clone())
        };
        if !self.world.lock().checkouts.contains(&checkout.path) {
            return Err(Error::permanent(format!("there is no checkout at {}", checkout.path.display())));
        }
        if let Some(secret) = &secret {
            context.hide(secret);
        }
        let reference = format!("image-{}-{}", context.deployment(), context.fence());
        self.world.lock().images.entry(reference.clone()).or_insert(false);
        context.output(Stream::Stdout, format!("building {}", checkout.commit.short()));
        let worked = self.world.work(context, behaviour.takes).await;
        if worked.is_err() || !behaviour.builds {
            self.world.lock().images.remove(&reference);
            worked?;
            let leak = secret.as_ref().map_or("", |secret| secret.expose());
            let lines = [format!("error: a syntax error {leak}")];
            return Err(Error::permanent("build the image: the compiler failed").with_detail(lines));
        }
        self.world.lock().images.insert(reference.clone(), true);
        Ok(Image::new(reference).with_update(behaviour.update != Update::None).with_setting("sha", sha))
    }

    async fn locate(&self, _context: &Context, image: &Image) -> Result<bool> {
        Ok(self.world.lock().images.get(&image.reference) == Some(&true))
    }

    async fn remove(&self, _context: &Context, image: &Image) -> Result<()> {
        self.world.lock().images.remove(&image.reference);
        Ok(())
    }

    async fn sweep(&self, _context: &Context, leftovers: &Leftovers) -> Result<()> {
        let is_left = |reference: &str| {
            let made_for = reference.strip_prefix("image-").and_then(|rest| rest.rsplit_once('-'));
            let deployment = made_for.and_then(|(deployment, _)| deployment.parse().ok());
            deployment.is_some_and(|deployment| leftovers.include(deployment, reference))
        };
        self.world.lock().images.retain(|reference, _| !is_left(reference));
        Ok(())
    }
}

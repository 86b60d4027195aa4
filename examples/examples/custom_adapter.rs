//! An adapter of one's own: a [`Builder`] that runs `make install` in the checkout and keeps what that installs.
//!
//! `cargo run --example custom_adapter` builds a small repository with it;
//! `cargo test -p ocore-examples --example custom_adapter` runs the laws of builders on it. Both need `make`.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use async_trait::async_trait;
use ocore_core::{
    port::{Builder, Checkout, Classify, Context, Result},
    program,
    release::Image,
};

/// Keeps each image as a directory below `images`, which must exist. A worker that is killed in a build leaves a
/// directory `.tmp…` behind, or an image that nobody knows of: a `sweep` would remove that.
struct MakeBuilder {
    images: PathBuf,
}

#[async_trait]
impl Builder for MakeBuilder {
    async fn build(&self, context: &Context, checkout: &Checkout) -> Result<Image> {
        let image = Image::new(format!("{}-{}", context.deployment(), context.fence()));
        if !self.locate(context, &image).await? {
            // Beside the images, and removed on every way out but the last: nothing half-built has the final name.
            let partial = tempfile::tempdir_in(&self.images).transient("make a directory")?;
            let mut make = Command::new("make");
            make.arg("install").arg(format!("DESTDIR={}", partial.path().display()));
            make.current_dir(&checkout.path);
            program::run(context, make).await?;
            fs::rename(partial.keep(), self.images.join(&image.reference)).permanent("keep the image")?;
        }
        Ok(image)
    }

    async fn locate(&self, _context: &Context, image: &Image) -> Result<bool> {
        Ok(is_name(&image.reference) && self.images.join(&image.reference).is_dir())
    }

    async fn remove(&self, context: &Context, image: &Image) -> Result<()> {
        if self.locate(context, image).await? {
            // Renamed first: an image that is removed half is no image.
            let gone = tempfile::tempdir_in(&self.images).transient("make a directory")?;
            let moved = fs::rename(self.images.join(&image.reference), gone.path().join("image"));
            moved.transient("move the image")?;
            gone.close().transient("remove the image")?;
        }
        Ok(())
    }
}

/// Whether it is a name in a directory, and not a way out of it.
fn is_name(reference: &str) -> bool {
    Path::new(reference).file_name().is_some_and(|name| name == reference)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (root, sources) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let builder = MakeBuilder { images: root.path().to_owned() };
    // An engine takes it with `Engine::builder().builder(builder)`; here it is called by hand.
    let checkout = sample::checkout(sources.path(), "all:\n\tnothing to do");
    let context = sample::caller().call(1, 1);
    match builder.build(&context, &checkout).await {
        Ok(image) => println!("unexpected: {image:?}"),
        Err(error) => println!("{}\nrefused, as it must be: {error}", error.detail().join("\n")),
    }
    let image = builder.build(&context, &sample::checkout(sources.path(), sample::MAKEFILE)).await?;
    println!(
        "built {}: {}",
        image.reference,
        fs::read_to_string(root.path().join(&image.reference).join("hello"))?
    );
    Ok(())
}

/// Repositories to build, and who asks for it.
mod sample {
    use std::{fs, path::Path, sync::Arc};

    use chrono::DateTime;
    use ocore_core::{
        environment::{Environment, EnvironmentSpec, InstanceSpec},
        port::Checkout,
        release::Commit,
        testing::laws::caller::Caller,
    };

    pub(crate) const MAKEFILE: &str = "hello: hello.in\n\tsed s/NAME/ocore/ $< > $@\n\
        install: hello\n\tmkdir -p $(DESTDIR)\n\tcp hello $(DESTDIR)/hello\n";

    pub(crate) fn checkout(root: &Path, makefile: &str) -> Checkout {
        let path = tempfile::tempdir_in(root).expect("a temporary directory can be made").keep();
        for (name, content) in [("Makefile", makefile), ("hello.in", "hello from NAME")] {
            fs::write(path.join(name), content).expect("a temporary file can be written");
        }
        Checkout::new(path, Commit::new(&"a".repeat(40), "Say hello", "A. Person", DateTime::UNIX_EPOCH))
    }

    pub(crate) fn caller() -> Caller {
        let spec = EnvironmentSpec::new("sample", "https://git.example.org/sample.git");
        let environment = Environment::try_from(spec.instance(InstanceSpec::new("web")));
        Caller::new(Arc::new(environment.expect("the sample's environment is valid")))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ocore_core::testing::laws::builder::BuilderFixture;
    use tempfile::TempDir;

    use super::*;

    struct Fixture {
        root: TempDir,
        sources: TempDir,
        builder: MakeBuilder,
    }

    fn fixture() -> Fixture {
        let found = Command::new("make").arg("--version").output();
        assert!(found.is_ok(), "this test needs make: install it (on Debian: apt-get install make)");
        let (root, sources) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let builder = MakeBuilder { images: root.path().to_owned() };
        Fixture { root, sources, builder }
    }

    #[async_trait]
    impl BuilderFixture for Fixture {
        fn builder(&self) -> &dyn Builder {
            &self.builder
        }
        fn checkout(&self) -> Checkout {
            sample::checkout(self.sources.path(), sample::MAKEFILE)
        }
        fn unbuildable(&self) -> Checkout {
            sample::checkout(self.sources.path(), "install:\n\tfalse\n")
        }
        async fn made(&self) -> BTreeSet<String> {
            let found = fs::read_dir(self.root.path()).unwrap();
            found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
        async fn damage(&self, _image: &Image) -> bool {
            // It keeps no checksums.
            false
        }
        fn sweeps(&self) -> bool {
            false
        }
    }

    ocore_core::builder_laws!(fixture());
}

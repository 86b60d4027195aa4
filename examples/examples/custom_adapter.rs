//! An adapter of one's own: a [`Builder`] that runs `make install` in the checkout and keeps what that installs.
//!
//! `cargo run --example custom_adapter` builds a small repository with it;
//! `cargo test -p ocore-examples --example custom_adapter` runs the laws of builders on it. Both need `make`.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use async_trait::async_trait;
use ocore_core::{
    event::Stream,
    port::{Builder, Checkout, Classify, Context, Error, Result},
    release::Image,
};
use rustix::process::{Pid, Signal};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::Command,
};

/// Keeps each image as a directory below `images`, which must exist. A worker that is killed in a build leaves a
/// directory `.tmp…` behind.
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
            make(context, &checkout.path, partial.path()).await?;
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

/// Runs `make install` and shows what it prints, the last lines also in the error; cancelled or dropped, it ends with
/// all its children.
async fn make(context: &Context, sources: &Path, destination: &Path) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", "exec make install DESTDIR=\"$0\" 2>&1"]).arg(destination).current_dir(sources);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let mut child = command.spawn().transient("start a shell")?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)));
    let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut tail = VecDeque::new();
    let ended = async {
        loop {
            let mut line = Vec::new();
            let read = (&mut output).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
            if read.transient("read what make prints")? == 0 {
                return child.wait().await.transient("wait for make");
            }
            let line = String::from_utf8_lossy(&line);
            context.output(Stream::Stdout, line.trim_end());
            tail.push_back(line.trim_end().to_owned());
            tail.drain(..tail.len().saturating_sub(TAIL_LINES));
        }
    };
    let status = tokio::select! {
        () = context.cancelled() => return Err(Error::cancelled()),
        status = ended => status?,
    };
    // It has ended: its number may soon be another's.
    std::mem::forget(group);
    if status.success() {
        return Ok(());
    }
    Err(Error::permanent(format!("make failed: {status}")).with_detail(tail))
}

const LINE_BYTES_MAX: u64 = 64 * 1024;
const TAIL_LINES: usize = 20;

/// A program and all that it started: killed when this goes away before its end.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.0.map(|group| rustix::process::kill_process_group(group, Signal::KILL));
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

    use ocore_core::testing::laws::{builder::BuilderFixture, caller::eventually};
    use tempfile::TempDir;

    use super::*;

    struct Fixture {
        root: TempDir,
        sources: TempDir,
        builder: MakeBuilder,
    }

    fn fixture() -> Fixture {
        let found = std::process::Command::new("make").arg("--version").output();
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
    }

    ocore_core::builder_laws!(fixture());

    #[tokio::test]
    async fn any_output_is_shown_and_no_more_of_it_kept_than_helps() {
        let fixture = fixture();
        let loud = "install:\n\tprintf '\\377 odd\\n'; seq 100000; head -c 200000 /dev/zero; false\n";
        let caller = sample::caller();
        let checkout = sample::checkout(fixture.sources.path(), loud);
        let error = fixture.builder.build(&caller.call(1, 1), &checkout).await.unwrap_err();
        let kept: usize = error.detail().iter().map(String::len).sum();
        assert!(error.detail().len() <= TAIL_LINES && kept <= 5 << 16, "{kept} bytes are kept");
        assert!(caller.lines().iter().any(|(_, line)| line == "\u{fffd} odd"), "a line is not shown");
    }

    #[tokio::test]
    async fn a_build_that_is_dropped_stops_with_all_its_children() {
        let fixture = fixture();
        let file = fixture.root.path().join("pid");
        let makefile = format!("install:\n\tsleep 1000 & echo $$! > {}; wait\n", file.display());
        let (context, checkout) =
            (sample::caller().call(1, 1), sample::checkout(fixture.sources.path(), &makefile));
        let pid = || fs::read_to_string(&file).ok()?.trim().parse::<i32>().ok();
        let runs = |pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains("(sleep)") && !stat.contains(") Z ")
        };
        {
            let build = fixture.builder.build(&context, &checkout);
            tokio::select! {
                result = build => panic!("the build has ended: {result:?}"),
                () = eventually("make has started its child", || async { pid().is_some_and(runs) }) => {}
            }
        }
        eventually("the child has ended", || async { !pid().is_some_and(runs) }).await;
        fs::remove_file(&file).unwrap();
        assert_eq!(fixture.made().await, BTreeSet::new());
    }
}

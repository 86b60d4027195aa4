use super::{Answer, Call, Faulty, faulty, stop_in_the_middle};
use crate::{
    environment::Instance,
    port::{
        Builder, Check, Checkout, Context, Error, HealthProbe, Leftovers, Observation, Result, Runtime,
        Snapshotter, Source,
    },
    release::{Commit, Image, LiveInstance, Release, Snapshot, Started},
    request::Revision,
};

impl Answer for Error {
    fn refused(call: Call) -> Self {
        Self::transient(format!("{call}: refused"))
    }

    fn permanent(call: Call) -> Self {
        Self::permanent(format!("{call}: will not work"))
    }

    fn unanswered(call: Call) -> Self {
        Self::unanswered(format!("{call}: the answer was lost"))
    }

    async fn half<R>(effect: impl Future<Output = Result<R>> + Send) {
        stop_in_the_middle(effect).await;
    }
}

faulty! {
    impl Source as "source" {
        fn fetch(&self, context: &Context, revision: &Revision) -> Result<Commit>;
        fn checkout(&self, context: &Context, commit: &Commit) -> Result<Checkout>;
    }

    async fn discard(&self, context: &Context, checkout: Checkout) -> Result<()> {
        let call = Call { port: "source", method: "discard" };
        let (inner, later_context, later_checkout) = (self.inner.clone(), context.clone(), checkout.clone());
        let late = || -> futures::future::BoxFuture<'static, ()> {
            Box::pin(async move {
                let _nobody_hears = inner.discard(&later_context, later_checkout).await;
            })
        };
        self.faults.run(self.caller, call, self.inner.discard(context, checkout), late).await
    }
}

faulty! {
    impl Builder as "builder" {
        fn build(&self, context: &Context, checkout: &Checkout) -> Result<Image>;
        fn locate(&self, context: &Context, image: &Image) -> Result<bool>;
        fn remove(&self, context: &Context, image: &Image) -> Result<()>;
        fn sweep(&self, context: &Context, leftovers: &Leftovers) -> Result<()>;
    }
}

faulty! {
    impl Snapshotter as "snapshotter" {
        fn take(&self, context: &Context, instance: &Instance) -> Result<Snapshot>;
        fn restore(&self, context: &Context, instance: &Instance, snapshot: &Snapshot) -> Result<()>;
        fn changed_since(&self, context: &Context, instance: &Instance, snapshot: &Snapshot) -> Result<bool>;
        fn remove(&self, context: &Context, snapshot: &Snapshot) -> Result<()>;
        fn sweep(&self, context: &Context, leftovers: &Leftovers) -> Result<()>;
    }

}

faulty! {
    impl Runtime as "runtime" {
        fn stop(&self, context: &Context, live: &LiveInstance) -> Result<()>;
        fn update(&self, context: &Context, instance: &Instance, release: &Release) -> Result<()>;
        fn start(&self, context: &Context, instance: &Instance, release: &Release) -> Result<Started>;
        fn withdraw(&self, context: &Context, instance: &Instance) -> Result<()>;
        fn revive(&self, context: &Context, live: &LiveInstance, release: &Release) -> Result<Started>;
        fn inspect(&self, context: &Context, instance: &Instance, started: &Started) -> Result<Observation>;
    }

    async fn tail(
        &self,
        context: &Context,
        instance: &Instance,
        started: &Started,
        lines: usize,
    ) -> Result<Vec<String>> {
        let call = Call { port: "runtime", method: "tail" };
        let effect = self.inner.tail(context, instance, started, lines);
        self.faults.run(self.caller, call, effect, || Box::pin(std::future::ready(()))).await
    }
}

faulty! {
    impl HealthProbe as "probe" {
        fn check(&self, context: &Context, instance: &Instance, started: &Started) -> Result<Check>;
    }

}

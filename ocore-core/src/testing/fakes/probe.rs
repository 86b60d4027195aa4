use async_trait::async_trait;

use super::{
    Running, World,
    world::{Health, Inner, fake},
};
use crate::{
    environment::Instance,
    port::{Check, Context, HealthProbe, Result},
    release::Started,
};

fake! {
    /// Asks the world's processes, which answer as their commit's behaviour says.
    FakeProbe
}

#[async_trait]
impl HealthProbe for FakeProbe {
    async fn check(&self, context: &Context, instance: &Instance, started: &Started) -> Result<Check> {
        let leaked = self.world.leaked(context);
        let failed = |reason: &str| Ok(Check::Failed { reason: reason.to_owned(), body: leaked.clone() });
        let mut inner = self.world.lock();
        let Some(sha) = find(&mut inner, context, instance, started).map(|process| process.sha.clone())
        else {
            return failed("connection refused");
        };
        let health = inner.behaviour(&sha).health;
        let Some(process) = find(&mut inner, context, instance, started) else {
            return failed("connection refused");
        };
        process.checks += 1;
        match health {
            Health::GoodAfter(checks) if process.checks > checks => pass(process),
            Health::GoodAfter(_) => failed("HTTP 503 Service Unavailable"),
            Health::Bad => Ok(Check::Failed {
                reason: "HTTP 500 Internal Server Error".to_owned(),
                body: Some(format!("<h1>Internal Server Error</h1>{}", leaked.unwrap_or_default())),
            }),
            Health::ExitsAfter(checks) if process.checks <= checks => pass(process),
            Health::ExitsAfter(_) => {
                process.down = Some("exited with status 1".to_owned());
                failed("connection refused")
            }
        }
    }
}

const fn pass(process: &mut Running) -> Result<Check> {
    process.passed += 1;
    Ok(Check::Passed)
}

/// The process that was asked about, if it runs.
fn find<'a>(
    inner: &'a mut Inner,
    context: &Context,
    instance: &Instance,
    started: &Started,
) -> Option<&'a mut Running> {
    let mut processes = inner.place(context, &instance.name).processes.iter_mut();
    processes.find(|process| process.reference == started.reference && process.down.is_none())
}

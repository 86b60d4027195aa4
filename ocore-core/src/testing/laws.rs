//! The laws of the ports: what every implementation must do. One macro per port; a backend invokes it in one line,
//! and it expands to one test per law.

pub mod builder;
pub mod caller;
pub mod probe;
pub mod runtime;
pub mod snapshotter;
pub mod source;
pub mod store;

use std::future::Future;

/// Runs one law to its end on a tokio runtime of its own.
///
/// # Panics
/// If the law is broken, or does not end within two minutes.
pub fn run<F: Future>(law: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a tokio runtime can be made");
    let limited = async { tokio::time::timeout(std::time::Duration::from_secs(120), law).await };
    runtime.block_on(limited).expect("a law ends within two minutes")
}

/// Declares the macro that expands a port's laws to tests: the list of the laws is kept here, once.
macro_rules! declare_laws {
    ($d:tt $(#[$doc:meta])* $macro_name:ident, $module:ident, [$($law:ident),* $(,)?]) => {
        $(#[$doc])*
        #[macro_export]
        macro_rules! $macro_name {
            ($d fixture:expr) => {
                $(
                    #[test]
                    fn $law() {
                        $d crate::testing::laws::run(async {
                            $d crate::testing::laws::$module::$law($d fixture).await
                        });
                    }
                )*
            };
        }
    };
}
pub(crate) use declare_laws;

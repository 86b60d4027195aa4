//! Why a repository's modules could not be installed: all that is wrong, at once, before anything is stopped for them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Addons, Manifest, Module, Series};

/// The first series that refuses a version it cannot read, instead of putting its own before it.
const STRICT_SINCE: u16 = 17;

/// What the modules are wanted for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Wanted {
    /// The series of the base image.
    pub series: Series,
    /// The names of the modules that the base image has.
    pub base: BTreeSet<String>,
    /// The modules that are asked for, to be installed or updated.
    pub modules: Vec<String>,
}

impl Wanted {
    /// Modules for a base image of this series, which has these modules itself.
    #[must_use]
    pub const fn new(series: Series, base: BTreeSet<String>) -> Self {
        Self { series, base, modules: Vec::new() }
    }

    /// The same, with this module asked for.
    #[must_use]
    pub fn module(mut self, name: impl Into<String>) -> Self {
        self.modules.push(name.into());
        self
    }
}

/// Everything that is wrong with a repository's modules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the modules cannot be built: {}", reasons.join("; "))]
#[non_exhaustive]
pub struct Faults {
    /// One sentence per fault, in the order of the modules' folders.
    pub reasons: Vec<String>,
}

impl Addons {
    /// Whether Odoo could install and update what is here.
    ///
    /// # Errors
    ///
    /// Every manifest that cannot be read; module names that Python cannot import; versions of another series, or, from
    /// 17.0 on, such as Odoo refuses; dependencies that neither the repository nor the base image has, that are not
    /// installable, or that lead back to where they began; and modules that are asked for and are not there, or not
    /// installable. What is wrong with a module that is not installable, and not asked for, is no fault: Odoo does not
    /// look at it.
    pub fn check(&self, wanted: &Wanted) -> Result<(), Faults> {
        let modules = self.modules();
        let mut reasons = Vec::new();
        for (folder, name, manifest) in self.all() {
            let path = folder.join(name);
            let path = path.display();
            match manifest {
                Err(error) => reasons.push(format!("{path}/__manifest__.py: {error}")),
                Ok(manifest) if manifest.installable => {
                    let faults = faults_of(name, manifest, &modules, wanted);
                    reasons.extend(faults.into_iter().map(|fault| format!("{path}: {fault}")));
                }
                Ok(_) => {}
            }
        }
        reasons.extend(circles(&modules));
        reasons.extend(wanted.modules.iter().filter_map(|name| refusal(name, &modules, wanted)));
        if reasons.is_empty() { Ok(()) } else { Err(Faults { reasons }) }
    }
}

fn faults_of(
    name: &str,
    manifest: &Manifest,
    modules: &BTreeMap<&str, Module<'_>>,
    wanted: &Wanted,
) -> Vec<String> {
    let mut faults = Vec::new();
    if !is_importable(name) {
        faults.push(
            "Python cannot import a module of this name: letters, digits and _ are possible".to_owned(),
        );
    }
    faults.extend(version_fault(&manifest.version, wanted.series));
    for dependency in &manifest.depends {
        match modules.get(dependency.as_str()) {
            Some(module) if !module.manifest.installable => {
                faults.push(format!("it depends on {dependency}, which is not installable"));
            }
            Some(_) => {}
            None if wanted.base.contains(dependency) => {}
            None => faults.push(format!(
                "it depends on {dependency}, which neither the repository nor the base image has"
            )),
        }
    }
    faults
}

fn is_importable(name: &str) -> bool {
    !name.starts_with(|first: char| first.is_ascii_digit())
        && name.chars().all(|next| next == '_' || next.is_alphanumeric())
}

fn version_fault(version: &str, series: Series) -> Option<String> {
    if version == series.to_string() || version.starts_with(&format!("{series}.")) {
        return None;
    }
    if let Some(other) = Series::of_version(version) {
        return Some(format!("its version {version} is of Odoo {other}, the base image of {series}"));
    }
    let parts: Vec<_> = version.split('.').collect();
    let is_own = (2..=3).contains(&parts.len())
        && parts.iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    (series.major() >= STRICT_SINCE && !is_own).then(|| {
        format!(
            "Odoo refuses its version {version:?}: write x.y, x.y.z, {series}.x.y or {series}.x.y.z with numbers"
        )
    })
}

/// Why a module that is asked for cannot be installed.
fn refusal(name: &str, modules: &BTreeMap<&str, Module<'_>>, wanted: &Wanted) -> Option<String> {
    match modules.get(name) {
        Some(module) if module.manifest.installable => None,
        Some(_) => {
            Some(format!("module {name} is asked for, and its manifest says that it is not installable"))
        }
        None if wanted.base.contains(name) => None,
        None => {
            Some(format!("module {name} is asked for, and neither the repository nor the base image has it"))
        }
    }
}

/// Dependencies that lead back to where they began, each circle once.
fn circles(modules: &BTreeMap<&str, Module<'_>>) -> Vec<String> {
    let (mut done, mut circles) = (BTreeSet::new(), Vec::new());
    for &name in modules.keys() {
        // What is on the way, each with the dependencies that are still to be followed.
        let mut way: Vec<(&str, &[String])> = vec![(name, depends(name, modules))];
        while let Some((module, rest)) = way.last_mut() {
            let Some((next, others)) = rest.split_first() else {
                done.insert(*module);
                way.pop();
                continue;
            };
            *rest = others;
            if let Some(begin) = way.iter().position(|(on_it, _)| on_it == next) {
                let names: Vec<_> =
                    way[begin..].iter().map(|(name, _)| *name).chain([next.as_str()]).collect();
                circles.push(format!("modules depend on each other in a circle: {}", names.join(" → ")));
            } else if !done.contains(next.as_str()) {
                way.push((next, depends(next, modules)));
            }
        }
    }
    circles
}

fn depends<'a>(name: &str, modules: &BTreeMap<&str, Module<'a>>) -> &'a [String] {
    match modules.get(name) {
        Some(module) if module.manifest.installable => &module.manifest.depends,
        Some(_) | None => &[],
    }
}

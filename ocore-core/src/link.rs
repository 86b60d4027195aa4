//! Symbolic links in trees that strangers have made.

use std::path::{Component, Path};

/// Whether a link at `path`, relative to the root of a tree, stays inside of the tree. What goes up after a name is
/// refused: that name may be another link, and then nobody knows from where it goes up.
///
/// ```
/// use ocore_core::link::stays_inside;
/// assert!(stays_inside("static/logo.png".as_ref(), "../assets/logo.png".as_ref()));
/// assert!(!stays_inside("static/logo.png".as_ref(), "/etc/passwd".as_ref()));
/// ```
#[must_use]
pub fn stays_inside(path: &Path, target: &Path) -> bool {
    let mut depth = path.components().count().saturating_sub(1);
    let mut named = false;
    for component in target.components() {
        match component {
            Component::Normal(_) => named = true,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 && !named => depth -= 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_may_not_leave_the_tree() {
        let check = |path: &str, target: &str, expected| {
            assert_eq!(stays_inside(Path::new(path), Path::new(target)), expected, "{path} -> {target}");
        };
        check("link", "file", true);
        check("a/link", "../file", true);
        check("a/link", "../../file", false);
        check("link", "..", false);
        check("link", "/etc/passwd", false);
        check("a/b/link", "../../c/./d", true);
        check("a/link", "b/../../../c", false);
        check("a/b/link", "../..", true);
        // With the link before as `a/b/link`, this one leads out.
        check("out", "a/b/link/..", false);
    }
}

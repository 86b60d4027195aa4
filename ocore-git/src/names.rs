//! Which names and links of a tree may be written to a disk.

/// Why this name must not be written, if it must not.
pub(crate) fn check_name(name: &[u8]) -> Result<(), &'static str> {
    if name.is_empty() || name == b"." || name == b".." {
        return Err("is empty, . or ..");
    }
    if name.len() > 255 {
        return Err("is longer than 255 bytes");
    }
    if name.iter().any(|b| *b == b'/' || *b == b'\\') {
        return Err("has a slash or backslash");
    }
    if has_control(name) {
        return Err("has a control character");
    }
    if is_git_directory(name) {
        return Err("stands for .git on some file system");
    }
    Ok(())
}

/// Why a symbolic link with this target must not be written, if it must not. `depth` is the number of directories
/// between the root and the link.
///
/// Upward steps are allowed in front only, where they walk the directories that lead to the link, and those are
/// real ones. After a name, which may be a link itself, they could lead anywhere.
pub(crate) fn check_link(target: &[u8], depth: usize) -> Result<(), &'static str> {
    if target.is_empty() || target.len() > 4095 {
        return Err("is empty or longer than 4095 bytes");
    }
    if target[0] == b'/' {
        return Err("is absolute");
    }
    if has_control(target) || target.contains(&b'\\') {
        return Err("has a control character or backslash");
    }
    let (mut up, mut named) = (0, false);
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if named => return Err("goes up again after a name"),
            b".." => up += 1,
            _ => named = true,
        }
    }
    if up > depth {
        return Err("leaves the tree");
    }
    Ok(())
}

fn has_control(text: &[u8]) -> bool {
    match std::str::from_utf8(text) {
        Ok(text) => text.chars().any(char::is_control),
        Err(_) => text.iter().any(u8::is_ascii_control),
    }
}

/// Whether a file system takes the name for `.git`: HFS+ ignores some code points, NTFS ignores case, dots and
/// spaces at the end, reads `:` as the start of a stream's name, and has the short name `git~1`.
fn is_git_directory(name: &[u8]) -> bool {
    let text = String::from_utf8_lossy(name);
    let visible: String =
        text.chars().filter(|c| !is_ignored_by_hfs(*c)).flat_map(char::to_lowercase).collect();
    let stem = visible.split(':').next().unwrap_or("").trim_end_matches(['.', ' ']);
    matches!(stem, ".git" | "git~1")
}

const fn is_ignored_by_hfs(c: char) -> bool {
    matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
}

/// What two names of one directory have in common if some file systems take them for one.
pub(crate) fn folded(name: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(name) {
        Ok(name) => name.to_lowercase().into_bytes(),
        Err(_) => name.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_do_harm_are_refused() {
        for name in
            ["a", ".github", ".gitignore", ".gitmodules", "git", "git~", "a b", "ü", "...", "-x", "a:b"]
        {
            assert_eq!(check_name(name.as_bytes()), Ok(()), "{name:?}");
        }
        let harmful =
            ["", ".", "..", "a/b", "a\\b", "a\0", "a\n", "\x1b[0m", "\u{85}", ".git", ".GIT", ".Git. "];
        let tricks = [
            ".gi\u{200c}t",
            "\u{feff}.git",
            ".git...",
            "git~1",
            "GIT~1",
            ".git::$INDEX_ALLOCATION",
            ".git:x",
        ];
        for name in harmful.iter().chain(&tricks) {
            assert!(check_name(name.as_bytes()).is_err(), "{name:?}");
        }
        assert!(check_name(&[b'x'; 256]).is_err());
        assert_eq!(check_name(b"caf\xe9"), Ok(()));
    }

    #[test]
    fn names_are_one_only_where_a_file_system_takes_them_for_one() {
        for (one, other) in [(&b"README"[..], &b"readme"[..]), ("Ärger".as_bytes(), "ärger".as_bytes())] {
            assert_eq!(folded(one), folded(other));
        }
        assert_eq!(folded(b"CAF\xe9"), folded(b"caf\xe9"));
        assert_ne!(folded(b"caf\xe9"), folded(b"caf\xe8"));
    }

    #[test]
    fn links_stay_inside() {
        for (target, depth) in [("a", 0), ("./a/b", 0), ("../a", 1), ("../../x", 2), ("..", 1), (".", 0)] {
            assert_eq!(check_link(target.as_bytes(), depth), Ok(()), "{target} at {depth}");
        }
        for (target, depth) in [("", 0), ("/etc/passwd", 3), ("..", 0), ("../a", 0), ("../../x", 1)] {
            assert!(check_link(target.as_bytes(), depth).is_err(), "{target} at {depth}");
        }
        for target in ["a/../b", "./a/..", "a\\b", "a\nb", "a/./../../.."] {
            assert!(check_link(target.as_bytes(), 9).is_err(), "{target}");
        }
    }
}

//! Why there was no answer, in plain words.

use std::{error::Error, io};

use super::Question;

/// Why a request got no answer. One line.
pub(super) fn no_answer(error: &reqwest::Error, question: &Question) -> String {
    let address = &question.address;
    if error.is_timeout() {
        return format!("{address} did not answer within {:?}", question.timeout);
    }
    let io = sources(error).find_map(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
    match io {
        Some(io::ErrorKind::ConnectionRefused) => {
            return format!("nothing listens on {address} (connection refused)");
        }
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof) => {
            return format!("{address} broke the connection before it answered");
        }
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            return format!("there is no way to {address} (host or network unreachable)");
        }
        _ => {}
    }
    let text = chain(error);
    if text.contains("connection closed before message completed") {
        format!("{address} closed the connection before it answered")
    } else if text.contains("invalid HTTP") {
        format!("{address} answered, but not in HTTP ({})", last(error))
    } else if text.contains("dns error") {
        format!("the host of {address} has no address ({})", last(error))
    } else {
        format!("{address}: {text}")
    }
}

/// The error and its causes, each said once, without the URL.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    for source in sources(error).skip(1) {
        let text = source.to_string();
        if !texts.iter().any(|said| said.contains(&text)) {
            texts.push(text);
        }
    }
    if texts.is_empty() { "the request could not be made".to_owned() } else { texts.join(": ") }
}

fn last(error: &reqwest::Error) -> String {
    sources(error).last().map(ToString::to_string).unwrap_or_default()
}

fn sources<'a>(error: &'a reqwest::Error) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let first: &'a (dyn Error + 'static) = error;
    std::iter::successors(Some(first), |error: &&'a (dyn Error + 'static)| (*error).source())
}

/// A text from outside in quotation marks, on one line, at most 200 characters of it.
pub(super) fn quoted(text: &str) -> String {
    let head: String = text.chars().take(200).collect();
    let rest = if head.len() < text.len() { "…" } else { "" };
    format!("{head:?}{rest}")
}

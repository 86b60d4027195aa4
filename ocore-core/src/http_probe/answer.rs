//! From an answer to a check.

use reqwest::{Response, StatusCode, header::LOCATION};
use tokio::time::timeout_at;

use super::{BODY_KEPT_MAX, BODY_SEARCHED_MAX, HttpPolicy, Question, words};
use crate::{id::DeploymentId, port::Check};

/// Judges an answer whose head has come. Reads no more of its body than is needed, and never waits past the deadline.
pub(super) async fn judge(
    mut response: Response,
    policy: &HttpPolicy,
    deployment: DeploymentId,
    question: &Question,
) -> Check {
    let wrong = wrong_status(&response, policy).or_else(|| wrong_header(&response, policy, deployment));
    let status = in_words(response.status());
    let text = match (wrong, &policy.body_contains) {
        (Some(reason), _) => {
            let body = Body::read(&mut response, BODY_KEPT_MAX, question).await;
            return failed(reason, Some(body));
        }
        (None, None) => return Check::Passed,
        (None, Some(text)) => text,
    };
    let body = Body::read(&mut response, BODY_SEARCHED_MAX, question).await;
    if contains(&body.bytes, text.as_bytes()) {
        return Check::Passed;
    }
    let came = match body.end {
        End::Whole => "its body does not contain",
        End::Cut => "the first 64 KiB of its body do not contain",
        End::TooSlow => "what came of its body in time does not contain",
        End::Broken => "its body broke off and does not contain",
    };
    failed(format!("answered {status}, but {came} {}", words::quoted(text)), Some(body))
}

pub(super) fn failed(reason: String, body: Option<Body>) -> Check {
    let head = |body: Body| {
        let kept = &body.bytes[..body.bytes.len().min(BODY_KEPT_MAX)];
        // A character that the cut went through would show as one that the instance never sent.
        let whole = match std::str::from_utf8(kept) {
            Err(error) if error.error_len().is_none() => &kept[..error.valid_up_to()],
            _ => kept,
        };
        String::from_utf8_lossy(whole).into_owned()
    };
    Check::Failed { reason, body: body.map(head).filter(|body| !body.is_empty()) }
}

fn wrong_status(response: &Response, policy: &HttpPolicy) -> Option<String> {
    let status = response.status();
    if policy.allows(status.as_u16()) {
        return None;
    }
    let location = response.headers().get(LOCATION).filter(|_| status.is_redirection());
    let to = location.map(|to| format!(" to {}", words::quoted(&String::from_utf8_lossy(to.as_bytes()))));
    Some(format!("answered {}{}", in_words(status), to.unwrap_or_default()))
}

fn wrong_header(response: &Response, policy: &HttpPolicy, deployment: DeploymentId) -> Option<String> {
    let header = policy.header.as_ref()?;
    let expected = header.value.clone().unwrap_or_else(|| deployment.to_string());
    let found = response.headers().get(&header.name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let (status, name) = (in_words(response.status()), &header.name);
    match found {
        Some(found) if found == expected => None,
        Some(found) => {
            let found = words::quoted(&found);
            Some(format!(
                "answered {status}, but its header {name} is {found}, not {expected:?}: another release?"
            ))
        }
        None => Some(format!("answered {status}, but without the header {name}: another release?")),
    }
}

fn in_words(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

fn contains(body: &[u8], text: &[u8]) -> bool {
    text.is_empty() || body.windows(text.len()).any(|window| window == text)
}

/// The head of a body.
pub(super) struct Body {
    bytes: Vec<u8>,
    end: End,
}

enum End {
    Whole,
    Cut,
    TooSlow,
    Broken,
}

impl Body {
    async fn read(response: &mut Response, limit: usize, question: &Question) -> Self {
        let mut bytes = Vec::new();
        let end = loop {
            if bytes.len() >= limit {
                break End::Cut;
            }
            match timeout_at(question.deadline, response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    bytes.extend_from_slice(&chunk[..chunk.len().min(limit - bytes.len())])
                }
                Ok(Ok(None)) => break End::Whole,
                Ok(Err(error)) if error.is_timeout() => break End::TooSlow,
                Ok(Err(_)) => break End::Broken,
                Err(_) => break End::TooSlow,
            }
        };
        Self { bytes, end }
    }
}

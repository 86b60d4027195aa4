//! What libgit2 asks the gate for.

use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::location::Remote;

/// The most that is read of a request's head.
const BYTES_MAX: usize = 16 * 1024;
const END: &[u8] = b"\r\n\r\n";

/// The beginning of a request that only libgit2 could make, for it knows the gate's key.
pub(super) struct Request {
    /// Its first line, as the host gets it.
    line: String,
    /// Whether it asks for a pack.
    pub(super) for_pack: bool,
    /// The other lines, and what was read beyond them.
    rest: Vec<u8>,
}

impl Request {
    /// Reads a request's head; nothing, if it is none that libgit2 makes of this gate.
    pub(super) async fn read(near: &mut TcpStream, key: &str, remote: &Remote) -> Option<Self> {
        let mut head = Vec::new();
        while !head.windows(END.len()).any(|window| window == END) {
            let count = near.read_buf(&mut head).await.ok()?;
            if count == 0 || head.len() > BYTES_MAX {
                return None;
            }
        }
        Self::parse(&head, key, remote)
    }

    /// Two requests are all that a fetch needs.
    fn parse(head: &[u8], key: &str, remote: &Remote) -> Option<Self> {
        let path = remote.path.trim_end_matches('/');
        let wanted = [("GET", "info/refs?service=git-upload-pack"), ("POST", "git-upload-pack")];
        let end = head.windows(2).position(|window| window == b"\r\n")?;
        let asked = std::str::from_utf8(&head[..end]).ok()?;
        let (method, service) = wanted
            .into_iter()
            .find(|(method, service)| asked == format!("{method} /{key}/{service} HTTP/1.1"))?;
        let line = format!("{method} {path}/{service} HTTP/1.1\r\n");
        Some(Self { line, for_pack: method == "POST", rest: head[end + 2..].to_vec() })
    }

    /// Puts the host's own name and the credentials into the request, and asks for one answer only.
    pub(super) fn for_the_host(&self, remote: &Remote, authorization: Option<&str>) -> Vec<u8> {
        let authority = remote.authority();
        let mut head = format!("{}Host: {authority}\r\nConnection: close\r\n", self.line).into_bytes();
        head.extend_from_slice(authorization.unwrap_or("").as_bytes());
        let end = self.rest.windows(END.len()).position(|window| window == END);
        let (lines, beyond) = self.rest.split_at(end.map_or(self.rest.len(), |at| at + 2));
        for line in lines.split_inclusive(|b| *b == b'\n') {
            let name = line.split(|b| *b == b':').next().unwrap_or(line).to_ascii_lowercase();
            if !matches!(&name[..], b"host" | b"connection" | b"authorization") {
                head.extend_from_slice(line);
            }
        }
        head.extend_from_slice(beyond);
        head
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{location::Location, policy::SourcePolicy};

    fn remote() -> Remote {
        match Location::parse("https://git.test/a/b.git/", &SourcePolicy::default()) {
            Ok(Location::Remote(remote)) => remote,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_the_two_requests_of_a_fetch_pass() {
        let asked = |line: &str| Request::parse(format!("{line}\r\n\r\n").as_bytes(), "key", &remote());
        let line = |text: &str| asked(text).map(|request| request.line);
        assert_eq!(
            line("GET /key/info/refs?service=git-upload-pack HTTP/1.1").as_deref(),
            Some("GET /a/b.git/info/refs?service=git-upload-pack HTTP/1.1\r\n")
        );
        assert_eq!(
            line("POST /key/git-upload-pack HTTP/1.1").as_deref(),
            Some("POST /a/b.git/git-upload-pack HTTP/1.1\r\n")
        );
        for other in [
            "GET /a/b.git/info/refs?service=git-upload-pack HTTP/1.1",
            "GET /wrong/info/refs?service=git-upload-pack HTTP/1.1",
            "GET /key/info/refs?service=git-receive-pack HTTP/1.1",
            "GET /key/../other/info/refs?service=git-upload-pack HTTP/1.1",
            "GET http://git.test/key/info/refs?service=git-upload-pack HTTP/1.1",
            "GET /key/info/refs?service=git-upload-pack HTTP/1.1\nX: y",
            "POST /key/git-receive-pack HTTP/1.1",
            "DELETE /key/git-upload-pack HTTP/1.1",
            "",
        ] {
            assert!(asked(other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn the_hosts_name_and_the_credentials_are_put_in() {
        let head = "POST /key/git-upload-pack HTTP/1.1\r\nHost: 127.0.0.1:1\r\nAuthorization: x\r\n\
                    Connection: keep-alive\r\nContent-Length: 4\r\n\r\nhost";
        let request = Request::parse(head.as_bytes(), "key", &remote()).unwrap();
        let sent = request.for_the_host(&remote(), Some("Authorization: Basic eA==\r\n"));
        let expected = "POST /a/b.git/git-upload-pack HTTP/1.1\r\nHost: git.test\r\nConnection: close\r\n\
                        Authorization: Basic eA==\r\nContent-Length: 4\r\n\r\nhost";
        assert_eq!(String::from_utf8(sent).unwrap(), expected);
    }
}

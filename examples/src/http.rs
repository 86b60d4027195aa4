//! A few lines of HTTP: enough to ask the sample application what it serves.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use crate::Result;

const TIMEOUT: Duration = Duration::from_secs(5);

/// A port of this machine that nothing listens on.
///
/// # Errors
/// All are taken.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The body of the answer to a GET request to this machine.
///
/// # Errors
/// Nothing answers, or with a status other than 200.
pub fn get(port: u16, path: &str) -> Result<String> {
    let (status, body) = request(port, &format!("GET {path}"), "")?;
    if status == 200 {
        Ok(body)
    } else {
        Err(format!("GET {path} on port {port}: status {status}: {body}").into())
    }
}

/// Posts a body to this machine.
///
/// # Errors
/// Nothing answers, or with a status other than 201.
pub fn post(port: u16, path: &str, body: &str) -> Result<()> {
    let (status, answer) = request(port, &format!("POST {path}"), body)?;
    if status == 201 {
        Ok(())
    } else {
        Err(format!("POST {path} on port {port}: status {status}: {answer}").into())
    }
}

fn request(port: u16, line: &str, body: &str) -> Result<(u16, String)> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let failed = |error: std::io::Error| format!("{line} on port {port}: {error}");
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).map_err(failed)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let length = body.len();
    let head = format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("an answer that is no HTTP")?;
    let status = head.split(' ').nth(1).ok_or("an answer without a status")?;
    Ok((status.parse()?, body.to_owned()))
}

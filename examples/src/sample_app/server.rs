use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use super::{DEPLOYMENT_HEADER, Manifest, Store};
use crate::Result;

/// The longest request line, header and body, in bytes.
const LENGTH_MAX: u64 = 16 * 1024;
const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct App {
    pub(super) manifest: Manifest,
    pub(super) store: Store,
    pub(super) deployment: String,
}

/// Serves until the process is ended.
pub(super) fn serve(port: u16, app: App) -> Result<()> {
    let listener =
        TcpListener::bind(("127.0.0.1", port)).map_err(|error| format!("listen on port {port}: {error}"))?;
    // One row is written at a time.
    let app = Arc::new(Mutex::new(app));
    for stream in listener.incoming() {
        let (stream, app) = (stream?, app.clone());
        thread::spawn(move || {
            if let Err(error) = answer(&stream, &app) {
                eprintln!("a request was not answered: {error}");
            }
        });
    }
    Ok(())
}

fn answer(mut stream: &TcpStream, app: &Mutex<App>) -> Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let (line, body) = read_request(stream)?;
    let app = app.lock().unwrap_or_else(PoisonError::into_inner);
    let (status, text) =
        app.respond(&line, &body).unwrap_or_else(|error| ("500 Internal Server Error", error.to_string()));
    let (length, deployment) = (text.len(), &app.deployment);
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{DEPLOYMENT_HEADER}: {deployment}\r\n");
    Ok(stream.write_all(format!("{head}Connection: close\r\n\r\n{text}").as_bytes())?)
}

/// The request line and the body.
fn read_request(stream: &TcpStream) -> Result<(String, String)> {
    let mut reader = BufReader::new(stream.take(LENGTH_MAX));
    let (mut line, mut length) = (String::new(), 0);
    reader.read_line(&mut line)?;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        match header.trim().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse()?
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = String::new();
    reader.take(length).read_to_string(&mut body)?;
    Ok((line, body))
}

impl App {
    fn respond(&self, line: &str, body: &str) -> Result<(&'static str, String)> {
        let mut words = line.split_whitespace();
        let answer = match (words.next().unwrap_or_default(), words.next().unwrap_or_default()) {
            ("GET", "/") if self.manifest.healthy => "well\n".to_owned(),
            ("GET", "/") => {
                eprintln!("health check: the payment service does not answer");
                return Ok(("503 Service Unavailable", "the payment service does not answer\n".to_owned()));
            }
            ("GET", "/version") => self.manifest.version.clone(),
            ("GET", "/rows") => serde_json::to_string(&self.store.rows()?)?,
            ("POST", "/rows") => {
                self.store.add(body.trim())?;
                return Ok(("201 Created", String::new()));
            }
            _ => return Ok(("404 Not Found", "no such page\n".to_owned())),
        };
        Ok(("200 OK", answer))
    }
}

//! An address that leads to whichever server serves, as a platform's proxy does.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

pub(crate) struct Switch {
    port: u16,
    server: Arc<Mutex<SocketAddr>>,
    listening: JoinHandle<()>,
}

impl Switch {
    pub(crate) async fn to(port: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let own = listener.local_addr()?.port();
        let server = Arc::new(Mutex::new(address(port)));
        let listening = tokio::spawn(listen(listener, server.clone()));
        Ok(Self { port: own, server, listening })
    }

    /// The port of the address.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Where new connections lead from now on.
    pub(crate) fn lead_to(&self, port: u16) {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = address(port);
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

async fn listen(listener: TcpListener, server: Arc<Mutex<SocketAddr>>) {
    while let Ok((mut client, _)) = listener.accept().await {
        let server = *server.lock().unwrap_or_else(PoisonError::into_inner);
        tokio::spawn(async move {
            if let Ok(mut server) = TcpStream::connect(server).await {
                // A server that dies ends the connection, however that is called.
                drop(copy_bidirectional(&mut client, &mut server).await);
            }
        });
    }
}

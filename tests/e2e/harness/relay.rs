//! A TCP relay before a daemon, which a test cuts and mends.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use super::own_address;

/// Both ends of what is carried now, and whether anything is.
#[derive(Default)]
struct Carried {
    cut: bool,
    streams: Vec<TcpStream>,
}

/// Carries connections to a daemon. Its threads end with the connections, or with the process of the test.
pub(crate) struct Relay {
    address: SocketAddr,
    carried: Arc<Mutex<Carried>>,
}

impl Relay {
    pub(crate) fn to(daemon: SocketAddr) -> Self {
        let listener = TcpListener::bind((own_address(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let carried: Arc<Mutex<Carried>> = Arc::default();
        let shared = Arc::clone(&carried);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                // The daemon may be away.
                let Ok(far) = TcpStream::connect(daemon) else { continue };
                let mut carried = shared.lock().unwrap();
                if carried.cut {
                    continue;
                }
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    carried.streams.push(from.try_clone().unwrap());
                    thread::spawn(move || carry(from, to));
                }
            }
        });
        Self { address, carried }
    }

    /// Where to dial instead of the daemon.
    pub(crate) fn url(&self) -> String {
        format!("novaferry://{}", self.address)
    }

    /// Every connection ends in this instant, and no new one comes through.
    pub(crate) fn cut(&self) {
        let mut carried = self.carried.lock().unwrap();
        carried.cut = true;
        for stream in carried.streams.drain(..) {
            // It may have ended by itself.
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    /// Connections come through again.
    pub(crate) fn mend(&self) {
        self.carried.lock().unwrap().cut = false;
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    drop(std::io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
}

//! What all kernel tests share.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use std::{env, fs, io};

use novaferry_link::{Channel, DirectionSpec, Link, LinkSpec, Probability, Side};

/// Ends a test that hangs; nothing is measured with it.
pub(crate) const HANG: Duration = Duration::from_secs(20);

/// The port of every socket here; each link has its own port space.
pub(crate) const PORT: u16 = 4433;

/// Packets that are sent before their arrival is awaited: they fit any socket's receive buffer.
pub(crate) const BURST: usize = 32;

pub(crate) fn percent(value: f64) -> Probability {
    Probability::new(value / 100.0).unwrap()
}

/// Whether this machine can run `test`; says so if not, and fails where `NOVAFERRY_REQUIRE` demands it.
pub(crate) fn can_run(test: &str) -> bool {
    let missing = if !rustix::process::geteuid().is_root() {
        Some(("root", "not root"))
    } else if !fs::exists("/dev/net/tun").unwrap() {
        Some(("netns", "no /dev/net/tun"))
    } else if std::process::Command::new("ip").arg("-V").output().is_err() {
        Some(("netns", "no `ip` command (package iproute2)"))
    } else {
        None
    };
    let Some((capability, why)) = missing else { return true };
    let required = env::var("NOVAFERRY_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|required| required == capability),
        "{test}: {capability} is required: {why}"
    );
    println!("SKIP {test}: {why}");
    false
}

/// A link for `test`, unless this machine cannot have one.
pub(crate) fn link(test: &str, spec: &LinkSpec) -> Option<Link> {
    can_run(test).then(|| {
        println!("{test}: seed {}", spec.seed);
        Link::up(spec).unwrap()
    })
}

pub(crate) fn symmetric(direction: DirectionSpec, seed: u64) -> LinkSpec {
    LinkSpec { seed, ..LinkSpec::symmetric(direction) }
}

/// A UDP socket on each side, connected to the other.
pub(crate) fn udp_pair(link: &Link) -> [UdpSocket; 2] {
    [(Side::A, Side::B), (Side::B, Side::A)].map(|(own, peer)| {
        let socket = link.enter(own, || UdpSocket::bind((own.address(), PORT)).unwrap()).unwrap();
        socket.connect((peer.address(), PORT)).unwrap();
        socket.set_read_timeout(Some(HANG)).unwrap();
        socket
    })
}

/// A TCP connection from A to B over `addresses` of B.
pub(crate) fn tcp_pair(link: &Link, address: impl Into<IpAddr>) -> [TcpStream; 2] {
    let address = SocketAddr::new(address.into(), PORT);
    let listener = link.enter(Side::B, || TcpListener::bind(address).unwrap()).unwrap();
    let near = link.enter(Side::A, || TcpStream::connect_timeout(&address, HANG).unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.set_write_timeout(Some(HANG)).unwrap();
    }
    [near, far]
}

/// A payload that begins with its number.
pub(crate) fn numbered(number: u32, length: usize) -> Vec<u8> {
    let mut payload: Vec<u8> = (0..length).map(|at| (at % 251).to_le_bytes()[0]).collect();
    payload[..4].copy_from_slice(&number.to_be_bytes());
    payload
}

/// Receives a payload made by [`numbered`] and checks that it is whole.
pub(crate) fn receive_numbered(socket: &UdpSocket, length: usize) -> io::Result<u32> {
    let mut buffer = [0; 65_535];
    // A receive with a timeout is not restarted by the kernel when a signal comes (signal(7)).
    let received = loop {
        match socket.recv(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    let number = u32::from_be_bytes(buffer[..4].try_into().unwrap());
    assert_eq!(buffer[..received], numbered(number, length), "packet {number} has changed");
    Ok(number)
}

/// Plays `count` packets through a channel of its own: for each, how often it arrives. This is what the link must do
/// to the first `count` packets from A to B.
pub(crate) fn replay(spec: &LinkSpec, count: u32) -> Vec<usize> {
    let mut channel = Channel::new(spec.a_to_b.clone(), spec.mtu, spec.seed_a_to_b());
    let mut now = std::time::Instant::now();
    (0..count)
        .map(|number| {
            channel.handle_packet(now, &numbered(number, 8));
            let mut copies = 0;
            while let Some(due) = channel.poll_timeout() {
                now = due;
                while channel.poll_deliver(now).is_some() {
                    copies += 1;
                }
            }
            copies
        })
        .collect()
}

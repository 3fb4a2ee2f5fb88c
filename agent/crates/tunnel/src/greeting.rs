//! The first bytes of every connection, on both sides and both transports: prelude, answer, first frame.

use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, SendStream};
use rustls_pki_types::CertificateDer;
use tokio::io::AsyncWriteExt;
use wire::{Control, DecodeError, LaneHello, PRELUDE, Prelude, Tag, negotiate};

use crate::core::SessionKey;
use crate::error::{Refusal, TunnelError, TunnelErrorKind};
use crate::frames::{self, Feed, QuicFeed, TcpFeed};
use crate::identity::PeerName;
use crate::quic_lane::QuicLink;
use crate::tcp_lane::TcpLink;
use crate::translate;

/// Most time for TCP and TLS or QUIC to be set up.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);
/// Most time for the prelude and the first frame, each.
pub(crate) const FIRST_FRAME: Duration = Duration::from_secs(10);

/// What the two transports do differently before there is a lane.
pub(crate) enum Link {
    Quic(QuicLink),
    Tcp(TcpLink),
}

impl Link {
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), TunnelError> {
        match self {
            Self::Quic(link) => link.send.write_all(bytes).await.map_err(translate::write_error),
            Self::Tcp(link) => async {
                link.stream.write_all(bytes).await?;
                link.stream.flush().await
            }
            .await
            .map_err(|error| translate::tls_error(error, "write to the peer")),
        }
    }

    async fn exact(&mut self, out: &mut [u8], what: &'static str) -> Result<(), TunnelError> {
        match self {
            Self::Quic(link) => frames::exact(&mut link.receive, out, FIRST_FRAME, what).await,
            Self::Tcp(link) => frames::exact(&mut TcpFeed(&mut link.stream), out, FIRST_FRAME, what).await,
        }
    }

    /// The peer's first frame, however long it takes. QUIC tells when the peer is dead.
    pub(crate) async fn answer(&mut self) -> Result<Control, TunnelError> {
        let Self::Quic(link) = self else {
            return Err(TunnelError::config("an answer is waited for over QUIC only"));
        };
        let header = frames::header(&mut link.receive, None, FIRST_FRAME).await?;
        let header = header.ok_or_else(|| TunnelError::new(TunnelErrorKind::Lost, "the peer hung up"))?;
        frames::control(&mut link.receive, header, FIRST_FRAME).await
    }

    async fn frame(&mut self) -> Result<Control, TunnelError> {
        match self {
            Self::Quic(link) => frame(&mut link.receive).await,
            Self::Tcp(link) => frame(&mut TcpFeed(&mut link.stream)).await,
        }
    }
}

async fn frame<F: Feed>(feed: &mut F) -> Result<Control, TunnelError> {
    let header = frames::header(feed, Some(FIRST_FRAME), FIRST_FRAME).await?;
    let header = header
        .ok_or_else(|| TunnelError::new(TunnelErrorKind::Lost, "the peer hung up during the greeting"))?;
    frames::control(feed, header, FIRST_FRAME).await
}

/// Dialling side: offers our versions and checks the choice.
pub(crate) async fn offer(link: &mut Link) -> Result<(), TunnelError> {
    let ours = Prelude::ours();
    link.write(&ours.encode()).await?;
    let mut bytes = [0; PRELUDE];
    link.exact(&mut bytes, "prelude").await?;
    let answer = Prelude::decode(&bytes).map_err(TunnelError::protocol)?;
    let chosen = negotiate(&ours, &answer).map_err(TunnelError::protocol)?;
    if answer.min != answer.max || chosen.features != answer.features {
        let value = answer.min.into();
        return Err(TunnelError::protocol(DecodeError::Invalid {
            field: "chosen version or features",
            value,
        }));
    }
    Ok(())
}

/// Listening side: answers an offer. When there is no common version, our own range is the answer, so that the
/// other side can say what to upgrade.
pub(crate) async fn answer(link: &mut Link) -> Result<(), TunnelError> {
    let mut bytes = [0; PRELUDE];
    link.exact(&mut bytes, "prelude").await?;
    let theirs = Prelude::decode(&bytes).map_err(TunnelError::protocol)?;
    let ours = Prelude::ours();
    match negotiate(&ours, &theirs) {
        Ok(chosen) => link.write(&chosen.encode()).await,
        Err(error) => {
            link.write(&ours.encode()).await?;
            Err(TunnelError::protocol(error))
        }
    }
}

/// The frame that says what a connection is for.
pub(crate) async fn first_frame(link: &mut Link) -> Result<Control, TunnelError> {
    loop {
        let frame = link.frame().await?;
        match frame.tag() {
            Tag::Open | Tag::LaneHello | Tag::Migrate | Tag::ChannelHello | Tag::Call => return Ok(frame),
            // Over TCP a dialler keeps the connection alive while it makes up its mind; our caller's deadline counts.
            Tag::Ping => {}
            other => return Err(TunnelError::unexpected_frame(other)),
        }
    }
}

/// Dialling side: binds a further connection to a session. The listener has routed it when the ping is answered.
pub(crate) async fn join(link: &mut Link, lane: u8, key: SessionKey) -> Result<(), TunnelError> {
    let SessionKey { session, generation } = key;
    let hello = LaneHello { session, generation, lane, class: wire::LaneClass::Data };
    let nonce = u64::from(lane);
    let frames: [Bytes; 2] = [Control::LaneHello(hello).encode(), Control::Ping(nonce).encode()];
    link.write(&frames.concat()).await?;
    loop {
        match link.frame().await? {
            Control::Pong(answer) if answer == nonce => return Ok(()),
            // The listener's own first ping; the lane will answer the next one.
            Control::Ping(_) => {}
            Control::Fail(fail) => {
                let code = crate::error::CloseCode::Failed(fail.code);
                return Err(TunnelError::peer_closed(code, fail.detail.as_bytes()));
            }
            other => return Err(TunnelError::unexpected_frame(other.tag())),
        }
    }
}

/// Who the other side of a QUIC connection is, once TLS has accepted it.
pub(crate) fn quic_peer(connection: &Connection) -> Result<PeerName, TunnelError> {
    let alpn = connection
        .handshake_data()
        .and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok())
        .and_then(|data| data.protocol);
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    peer(alpn.as_deref(), chain.as_deref().map(Vec::as_slice))
}

/// Who the other side of a TLS connection is, once TLS has accepted it.
pub(crate) fn tls_peer(state: &rustls::CommonState) -> Result<PeerName, TunnelError> {
    peer(state.alpn_protocol(), state.peer_certificates())
}

/// rustls lets a peer pass that offers no ALPN at all; we do not.
fn peer(alpn: Option<&[u8]>, chain: Option<&[CertificateDer<'_>]>) -> Result<PeerName, TunnelError> {
    let refuse = |refusal, what: &str| TunnelError::new(TunnelErrorKind::Refused(refusal), what);
    if alpn != Some(wire::ALPN) {
        return Err(refuse(Refusal::Alpn, "the peer did not agree to speak our protocol (ALPN)"));
    }
    let leaf = chain
        .and_then(<[_]>::first)
        .ok_or_else(|| refuse(Refusal::NoCertificate, "the peer sent no certificate"))?;
    PeerName::from_certificate(leaf)
        .map_err(|error| refuse(Refusal::Identity, "read the peer's host name").caused_by(error))
}

/// A QUIC connection with its control stream.
pub(crate) fn quic_link(
    connection: Connection,
    send: SendStream,
    receive: quinn::RecvStream,
    send_window: u64,
) -> Result<Link, TunnelError> {
    // Control frames overtake payload.
    send.set_priority(1).map_err(|error| {
        TunnelError::new(TunnelErrorKind::Lost, "the control stream is closed").caused_by(error)
    })?;
    Ok(Link::Quic(QuicLink { connection, send, receive: QuicFeed::new(receive), send_window }))
}

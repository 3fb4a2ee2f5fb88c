//! Why a tunnel could not be made, or ended.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use wire::{DecodeError, FailCode};

/// Code with which a tunnel is closed: 0, or the number of a [`FailCode`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseCode {
    /// All is done.
    Done,
    /// It failed for this reason.
    Failed(FailCode),
    /// A number that this version does not know.
    Unknown(u64),
}

impl CloseCode {
    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Done => 0,
            Self::Failed(code) => u64::from(code as u16),
            Self::Unknown(number) => number,
        }
    }

    pub(crate) fn from_number(number: u64) -> Self {
        if number == 0 {
            return Self::Done;
        }
        FailCode::ALL
            .iter()
            .find(|code| u64::from(**code as u16) == number)
            .map_or(Self::Unknown(number), |code| Self::Failed(*code))
    }
}

/// Why an identity or a greeting was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// The certificate was not issued by our CA, or its signature is wrong.
    UnknownAuthority,
    /// The certificate has expired.
    Expired,
    /// The certificate is not valid yet.
    NotYetValid,
    /// The certificate is on the revocation list.
    Revoked,
    /// The revocation list itself has expired, or does not cover the certificate.
    RevocationUnknown,
    /// The certificate may not be used for this side of a tunnel.
    Purpose,
    /// The certificate does not carry exactly one host name of ours.
    Identity,
    /// The peer is a host, but not the one that was asked for.
    WrongPeer,
    /// The peer sent no certificate.
    NoCertificate,
    /// The certificate could not be read or uses what we do not support.
    Malformed,
    /// The peer does not speak our protocol over TLS.
    Alpn,
    /// The peer does not speak TLS 1.3.
    TlsVersion,
    /// TLS failed in another way.
    Handshake,
}

/// What went wrong, as far as a caller can act on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TunnelErrorKind {
    /// Nobody answers at that address, or its name cannot be resolved.
    Unreachable,
    /// One side refused the other.
    Refused(Refusal),
    /// Nothing was heard for too long.
    TimedOut,
    /// No protocol version is spoken by both sides.
    Version,
    /// The peer sent what the protocol does not allow.
    Protocol(DecodeError),
    /// The peer ended the tunnel on purpose.
    PeerClosed(CloseCode),
    /// This side ended the tunnel.
    Closed(CloseCode),
    /// The connection broke.
    Lost,
    /// One channel of a migration broke, or was broken off by the peer; the tunnel goes on.
    ChannelLost,
    /// What was asked for makes no sense, or this host cannot do it.
    Config,
}

/// The error of everything in this crate. `Display` says what failed and what to do; the cause is in `source()`.
#[derive(Clone)]
pub struct TunnelError {
    kind: TunnelErrorKind,
    what: String,
    advice: Option<&'static str>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

/// Longest text that is taken from a peer into a message.
const MAX_FOREIGN_TEXT: usize = 512;

impl TunnelError {
    pub(crate) fn new(kind: TunnelErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), advice: advice(kind), source: None }
    }

    pub(crate) fn advise(mut self, advice: &'static str) -> Self {
        self.advice = Some(advice);
        self
    }

    pub(crate) fn caused_by(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    pub(crate) fn config(what: impl Into<String>) -> Self {
        Self::new(TunnelErrorKind::Config, what)
    }

    pub(crate) fn protocol(error: DecodeError) -> Self {
        let kind = match error {
            DecodeError::NoCommonVersion { .. } | DecodeError::PreludeVersion(_) => TunnelErrorKind::Version,
            _ => TunnelErrorKind::Protocol(error),
        };
        Self::new(kind, "the peer broke the protocol").caused_by(error)
    }

    /// A frame that is valid, but not here.
    pub(crate) fn unexpected_frame(tag: wire::Tag) -> Self {
        Self::protocol(DecodeError::Invalid { field: "frame tag at this place", value: tag as u64 })
    }

    pub(crate) fn peer_closed(code: CloseCode, reason: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&reason[..reason.len().min(MAX_FOREIGN_TEXT)]);
        let what = match code {
            CloseCode::Done => "the peer closed the tunnel".to_owned(),
            CloseCode::Failed(code) => format!("the peer closed the tunnel ({code:?}): {text:?}"),
            CloseCode::Unknown(code) => format!("the peer closed the tunnel (code {code}): {text:?}"),
        };
        Self::new(TunnelErrorKind::PeerClosed(code), what)
    }

    /// Both transports failed: one message with both reasons; the kind is the second one's.
    pub(crate) fn both(quic: &Self, tcp: Self) -> Self {
        let what = format!("QUIC failed ({}), and so did TCP ({})", quic.chain(), tcp.chain());
        Self { what, source: None, ..tcp }
    }

    /// The kind, to match on.
    #[must_use]
    pub fn kind(&self) -> TunnelErrorKind {
        self.kind
    }

    /// What the reader of the message should do, where that is known.
    #[must_use]
    pub fn advice(&self) -> Option<&'static str> {
        self.advice
    }

    /// Whether dialling again can help without somebody changing something.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            TunnelErrorKind::Unreachable
                | TunnelErrorKind::TimedOut
                | TunnelErrorKind::Lost
                | TunnelErrorKind::PeerClosed(CloseCode::Failed(
                    FailCode::Overloaded | FailCode::TimedOut | FailCode::Internal
                ))
        )
    }

    /// The code that tells the peer why we close because of this error.
    pub(crate) fn close_code(&self) -> CloseCode {
        match self.kind {
            TunnelErrorKind::Protocol(_) => CloseCode::Failed(FailCode::Protocol),
            TunnelErrorKind::Version => CloseCode::Failed(FailCode::Version),
            TunnelErrorKind::TimedOut => CloseCode::Failed(FailCode::TimedOut),
            TunnelErrorKind::Refused(_) => CloseCode::Failed(FailCode::NotAuthorised),
            TunnelErrorKind::Closed(code) => code,
            _ => CloseCode::Done,
        }
    }

    /// This message and its causes in one line, without the advice.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.what.clone();
        let mut cause = self.source.as_deref().map(|e| e as &dyn Error);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

fn advice(kind: TunnelErrorKind) -> Option<&'static str> {
    Some(match kind {
        TunnelErrorKind::Unreachable => {
            "check the address and that the agent there is running and its UDP and TCP port is open"
        }
        TunnelErrorKind::TimedOut => "check the network between the hosts; a transfer can be resumed",
        TunnelErrorKind::Lost => "dial again; a transfer can be resumed",
        TunnelErrorKind::Version => "upgrade the older side",
        TunnelErrorKind::Protocol(_) => {
            "check that both sides run a released version; report this with both versions if they do"
        }
        TunnelErrorKind::Refused(refusal) => match refusal {
            Refusal::UnknownAuthority => "issue both hosts' certificates with the same CA",
            Refusal::Expired => "issue the host a new certificate with `pki issue --renew`",
            Refusal::NotYetValid => "check the clocks of both hosts",
            Refusal::Revoked => {
                "the host was shut out on purpose; issue it a new certificate if that is over"
            }
            Refusal::RevocationUnknown => {
                "sign a new revocation list at the CA, put it in the identity folder of the host that refused, and reload"
            }
            Refusal::Purpose | Refusal::Identity | Refusal::Malformed => {
                "use a certificate made by `pki issue`: Ed25519, for client and server, with one host name"
            }
            Refusal::WrongPeer => "check the address, or the name of the host that you expect there",
            Refusal::NoCertificate => "the peer must have an identity; make one with `pki issue`",
            Refusal::Alpn | Refusal::TlsVersion | Refusal::Handshake => {
                "check that an agent of a matching version listens there"
            }
        },
        TunnelErrorKind::PeerClosed(_)
        | TunnelErrorKind::Closed(_)
        | TunnelErrorKind::ChannelLost
        | TunnelErrorKind::Config => return None,
    })
}

impl fmt::Display for TunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(advice) = self.advice {
            write!(f, "; {advice}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for TunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TunnelError({:?}: {})", self.kind, self.chain())
    }
}

impl Error for TunnelError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn Error + 'static))
    }
}

/// The tunnel is over: nothing can be sent any more. The reason is in the inbox's [`crate::Event::Closed`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the tunnel is closed")
    }
}

impl Error for Closed {}

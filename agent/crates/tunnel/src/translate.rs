//! Errors of quinn, rustls and the system as ours.

use std::io;

use quinn::{ConnectionError, ReadError, WriteError};
use rustls::{AlertDescription, CertificateError};

use crate::error::{CloseCode, Refusal, TunnelError, TunnelErrorKind};

/// First of the QUIC error codes that carry a TLS alert (RFC 9001, 4.8).
const CRYPTO_ERRORS: u64 = 0x100;
const CONNECTION_REFUSED: u64 = 0x2;

fn alert(description: AlertDescription) -> TunnelError {
    use AlertDescription as A;
    let refusal = match description {
        A::NoApplicationProtocol => Refusal::Alpn,
        A::ProtocolVersion => Refusal::TlsVersion,
        A::CertificateRequired => Refusal::NoCertificate,
        A::CertificateRevoked => Refusal::Revoked,
        A::CertificateExpired => Refusal::Expired,
        A::UnknownCA => Refusal::UnknownAuthority,
        A::BadCertificate | A::UnsupportedCertificate | A::CertificateUnknown | A::AccessDenied => {
            Refusal::Identity
        }
        _ => Refusal::Handshake,
    };
    let what = format!("the TLS handshake was refused ({description:?})");
    TunnelError::new(TunnelErrorKind::Refused(refusal), what)
}

pub(crate) fn connection_error(error: ConnectionError) -> TunnelError {
    let crypto = |code: u64| {
        let number = code.checked_sub(CRYPTO_ERRORS).and_then(|number| u8::try_from(number).ok());
        number.map(|number| alert(AlertDescription::from(number)))
    };
    match &error {
        ConnectionError::ApplicationClosed(close) => {
            TunnelError::peer_closed(CloseCode::from_number(close.error_code.into_inner()), &close.reason)
        }
        ConnectionError::ConnectionClosed(close) => {
            let code = u64::from(close.error_code);
            if let Some(found) = crypto(code) {
                return found.caused_by(error);
            }
            if code == CONNECTION_REFUSED {
                return TunnelError::new(TunnelErrorKind::Unreachable, "the peer takes no more connections")
                    .advise("wait for its other sessions, or check that it is not shutting down")
                    .caused_by(error);
            }
            TunnelError::new(TunnelErrorKind::Lost, "the peer's transport closed the connection")
                .caused_by(error)
        }
        ConnectionError::TransportError(local) => match crypto(u64::from(local.code)) {
            Some(found) => found.caused_by(error),
            None => TunnelError::new(TunnelErrorKind::Lost, "the connection failed").caused_by(error),
        },
        ConnectionError::TimedOut => {
            TunnelError::new(TunnelErrorKind::TimedOut, "nothing was heard from the peer").caused_by(error)
        }
        ConnectionError::VersionMismatch => {
            TunnelError::new(TunnelErrorKind::Version, "no common QUIC version").caused_by(error)
        }
        ConnectionError::Reset => {
            TunnelError::new(TunnelErrorKind::Lost, "the peer forgot the connection (it restarted)")
                .caused_by(error)
        }
        ConnectionError::LocallyClosed => {
            TunnelError::new(TunnelErrorKind::Closed(CloseCode::Done), "this side closed the connection")
        }
        ConnectionError::CidsExhausted => {
            TunnelError::new(TunnelErrorKind::Lost, "the connection ran out of connection ids")
                .caused_by(error)
        }
    }
}

pub(crate) fn read_error(error: ReadError) -> TunnelError {
    match error {
        ReadError::ConnectionLost(error) => connection_error(error),
        // Our senders never reset a stream: what arrives so is cut off.
        ReadError::Reset(_) => TunnelError::protocol(wire::DecodeError::Truncated("reset stream")),
        other => TunnelError::new(TunnelErrorKind::Lost, "read from a stream").caused_by(other),
    }
}

pub(crate) fn write_error(error: WriteError) -> TunnelError {
    match error {
        WriteError::ConnectionLost(error) => connection_error(error),
        other => TunnelError::new(TunnelErrorKind::Lost, "write to a stream").caused_by(other),
    }
}

/// An error of a TLS or TCP stream.
pub(crate) fn tls_error(error: io::Error, operation: &'static str) -> TunnelError {
    use rustls::Error as E;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<E>());
    let refused = |refusal| TunnelError::new(TunnelErrorKind::Refused(refusal), "the TLS handshake failed");
    let translated = match inner {
        Some(E::AlertReceived(description)) => alert(*description),
        Some(E::NoApplicationProtocol) => refused(Refusal::Alpn),
        Some(E::NoCertificatesPresented) => refused(Refusal::NoCertificate),
        Some(E::PeerIncompatible(_)) => refused(Refusal::TlsVersion),
        // The certificate is fine, but the peer does not have its key.
        Some(E::InvalidCertificate(CertificateError::BadSignature)) => refused(Refusal::Handshake),
        Some(E::InvalidCertificate(_)) => refused(Refusal::Malformed),
        Some(_) => refused(Refusal::Handshake),
        None => {
            let kind = match error.kind() {
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::AddrNotAvailable => TunnelErrorKind::Unreachable,
                io::ErrorKind::TimedOut => TunnelErrorKind::TimedOut,
                _ => TunnelErrorKind::Lost,
            };
            TunnelError::new(kind, operation)
        }
    };
    translated.caused_by(error)
}

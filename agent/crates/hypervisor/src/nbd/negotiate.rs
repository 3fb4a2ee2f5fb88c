//! The handshake over a stream: greeting, structured replies, metadata contexts, GO.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::wire::handshake::{
    self, EXPORT_NAME_PADDING, EXPORT_NAME_REPLY_LENGTH, GREETING_LENGTH, REPLY_HEADER_LENGTH,
};
use super::wire::{
    BlockSizes, Greeting, Information, MAX_OPTION_REPLIES, MetaContext, OptionRefusal, OptionReply,
    ProtocolError, ReplyHeader, TransmissionFlags,
};
use crate::error::{ConnectionLoss, Error};

/// What the handshake agreed on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Agreement {
    pub(super) size: u64,
    pub(super) flags: TransmissionFlags,
    pub(super) sizes: BlockSizes,
    pub(super) structured: bool,
    pub(super) contexts: Vec<MetaContext>,
}

/// How one option ended.
enum Outcome {
    Done,
    Refused(OptionRefusal),
}

/// A stream in the middle of the handshake.
struct Handshake<'a, S> {
    stream: &'a mut S,
    target: &'a str,
}

/// Runs the handshake for `export`, asking for `contexts`.
pub(super) async fn negotiate<S>(
    stream: &mut S,
    target: &str,
    export: &str,
    contexts: &[&str],
) -> Result<Agreement, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut handshake = Handshake { stream, target };
    let mut head = [0; GREETING_LENGTH];
    handshake.read(&mut head).await?;
    let greeting = handshake.decoded(Greeting::decode(&head))?;
    handshake.write(&greeting.answer()).await?;

    let mut agreement = Agreement {
        size: 0,
        flags: TransmissionFlags::default(),
        sizes: BlockSizes::ASSUMED,
        structured: false,
        contexts: Vec::new(),
    };
    let structured = handshake::OPTION_STRUCTURED_REPLY;
    let bytes = handshake::encode_option(structured, &[]);
    let outcome = handshake.option(structured, &bytes, Err).await?;
    agreement.structured = matches!(outcome, Outcome::Done);
    if agreement.structured && !contexts.is_empty() {
        let chosen = &mut agreement.contexts;
        let bytes = handshake::encode_set_meta_context(export, contexts);
        // A refusal leaves no context chosen: the export is then read without knowing its holes.
        handshake
            .option(handshake::OPTION_SET_META_CONTEXT, &bytes, |reply| match reply {
                OptionReply::MetaContext(context) => {
                    chosen.push(context);
                    Ok(())
                }
                other => Err(other),
            })
            .await?;
    }
    handshake.go(export, greeting, &mut agreement).await?;
    Ok(agreement)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Handshake<'_, S> {
    async fn go(&mut self, export: &str, greeting: Greeting, agreement: &mut Agreement) -> Result<(), Error> {
        let mut described = None;
        let mut sizes = None;
        let bytes = handshake::encode_go(export);
        let outcome = self
            .option(handshake::OPTION_GO, &bytes, |reply| match reply {
                OptionReply::Information(information) => {
                    match information {
                        Information::Export { size, flags } => described = Some((size, flags)),
                        Information::BlockSizes(announced) => sizes = Some(announced),
                        Information::Other(_) => {}
                    }
                    Ok(())
                }
                other => Err(other),
            })
            .await?;
        match outcome {
            Outcome::Done => {
                let described = described.ok_or(ProtocolError::NoExportInformation);
                (agreement.size, agreement.flags) = self.decoded(described)?;
                agreement.sizes = sizes.unwrap_or(BlockSizes::ASSUMED);
                Ok(())
            }
            Outcome::Refused(refusal) if refusal.is_unsupported() => {
                self.export_name(export, greeting, agreement).await
            }
            Outcome::Refused(refusal) => Err(Error::Refused {
                target: self.target.to_owned(),
                what: format!("export \"{export}\""),
                refusal,
            }),
        }
    }

    /// The way into transmission for servers that do not know GO. A refusal is a closed connection.
    async fn export_name(
        &mut self,
        export: &str,
        greeting: Greeting,
        agreement: &mut Agreement,
    ) -> Result<(), Error> {
        self.write(&handshake::encode_option(handshake::OPTION_EXPORT_NAME, export.as_bytes())).await?;
        let mut reply = [0; EXPORT_NAME_REPLY_LENGTH];
        self.read(&mut reply).await?;
        (agreement.size, agreement.flags) = handshake::decode_export_name_reply(&reply);
        if !greeting.no_zeroes {
            self.read(&mut [0; EXPORT_NAME_PADDING]).await?;
        }
        Ok(())
    }

    /// Sends an option and hands every reply before its end to `visit`, which gives back what does not belong.
    async fn option(
        &mut self,
        option: u32,
        bytes: &[u8],
        mut visit: impl FnMut(OptionReply) -> Result<(), OptionReply>,
    ) -> Result<Outcome, Error> {
        self.write(bytes).await?;
        for _ in 0..MAX_OPTION_REPLIES {
            let mut head = [0; REPLY_HEADER_LENGTH];
            self.read(&mut head).await?;
            let header = self.decoded(ReplyHeader::decode(&head))?;
            if header.option != option {
                let found = header.option;
                return self.decoded(Err(ProtocolError::WrongOption { expected: option, found }));
            }
            let mut payload = vec![0; header.length as usize];
            self.read(&mut payload).await?;
            match self.decoded(OptionReply::decode(header.reply, &payload))? {
                OptionReply::Ack => return Ok(Outcome::Done),
                OptionReply::Refused(refusal) => return Ok(Outcome::Refused(refusal)),
                other => {
                    if visit(other).is_err() {
                        let found = header.reply;
                        return self
                            .decoded(Err(ProtocolError::UnexpectedReply { what: "option reply", found }));
                    }
                }
            }
        }
        self.decoded(Err(ProtocolError::TooManyReplies { limit: MAX_OPTION_REPLIES }))
    }

    async fn read(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.stream.read_exact(bytes).await.map(drop).map_err(|error| self.lost(error))
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream.write_all(bytes).await.map_err(|error| self.lost(error))
    }

    fn lost(&self, error: std::io::Error) -> Error {
        Error::Lost { target: self.target.to_owned(), source: ConnectionLoss::Socket(error).into() }
    }

    fn decoded<T>(&self, result: Result<T, ProtocolError>) -> Result<T, Error> {
        result.map_err(|source| Error::Protocol { target: self.target.to_owned(), source })
    }
}

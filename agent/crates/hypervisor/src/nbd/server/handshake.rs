//! The handshake of one client: greeting, then options until one of them starts transmission or ends it all.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::super::wire::ProtocolError;
use super::super::wire::handshake::{OPTION_EXPORT_NAME, OPTION_GO};
use super::super::wire::options::{
    self, CLIENT_FLAGS_LENGTH, ClientFlags, MAX_OPTIONS, OPTION_HEADER_LENGTH, OPTION_INFO, OptionHeader,
    OptionRequest, Query, Refusal,
};
use super::Export;
use crate::error::ConnectionLoss;

/// How the handshake ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    /// The client has said ABORT.
    Aborted,
    /// Requests follow.
    Started {
        /// Replies to READ are structured.
        structured: bool,
    },
}

/// What an option leads to.
enum Step {
    Answer(Vec<u8>),
    Start(Vec<u8>),
    Abort(Vec<u8>),
}

/// Runs the handshake for `export`.
pub(super) async fn enter<S>(stream: &mut S, export: &Export) -> Result<Entry, ConnectionLoss>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&options::greeting()).await?;
    let mut flags = [0; CLIENT_FLAGS_LENGTH];
    stream.read_exact(&mut flags).await?;
    let client = ClientFlags::decode(flags)?;
    let mut structured = false;
    for _ in 0..MAX_OPTIONS {
        let mut head = [0; OPTION_HEADER_LENGTH];
        stream.read_exact(&mut head).await?;
        let header = OptionHeader::decode(&head)?;
        let mut payload = vec![0; header.length as usize];
        stream.read_exact(&mut payload).await?;
        let step = match OptionRequest::decode(header.option, &payload) {
            Ok(request) => answer(header.option, request, export, client, &mut structured)?,
            // EXPORT_NAME has no error reply.
            Err(error) if header.option == OPTION_EXPORT_NAME => return Err(error.into()),
            Err(error) => refuse(header.option, Refusal::Invalid, &error.to_string()),
        };
        match step {
            Step::Answer(bytes) => stream.write_all(&bytes).await?,
            Step::Start(bytes) => {
                stream.write_all(&bytes).await?;
                return Ok(Entry::Started { structured });
            }
            Step::Abort(bytes) => {
                // The client may be gone already: it does not have to wait for this.
                drop(stream.write_all(&bytes).await);
                return Ok(Entry::Aborted);
            }
        }
    }
    Err(ProtocolError::TooManyOptions { limit: MAX_OPTIONS }.into())
}

fn refuse(option: u32, refusal: Refusal, message: &str) -> Step {
    Step::Answer(options::encode_refusal(option, refusal, message))
}

fn answer(
    option: u32,
    request: OptionRequest,
    export: &Export,
    client: ClientFlags,
    structured: &mut bool,
) -> Result<Step, ProtocolError> {
    Ok(match request {
        OptionRequest::ExportName(name) if name == export.name => {
            Step::Start(options::encode_export_name_reply(export.size, export.flags(), client))
        }
        OptionRequest::ExportName(name) => return Err(ProtocolError::UnknownExport { name }),
        OptionRequest::Abort => Step::Abort(options::encode_ack(option)),
        OptionRequest::List => Step::Answer(options::encode_list(&export.name)),
        OptionRequest::Info(query) => describe(OPTION_INFO, &query, export),
        OptionRequest::Go(query) => describe(OPTION_GO, &query, export),
        OptionRequest::StructuredReply if *structured => {
            refuse(option, Refusal::Invalid, "structured replies are agreed on already")
        }
        OptionRequest::StructuredReply => {
            *structured = true;
            Step::Answer(options::encode_ack(option))
        }
        OptionRequest::Unknown => refuse(option, Refusal::Unsupported, "this option is not offered"),
    })
}

/// The answer to INFO and GO. GO starts only with a description.
fn describe(option: u32, query: &Query, export: &Export) -> Step {
    if query.name != export.name {
        return refuse(option, Refusal::UnknownExport, "there is no such export");
    }
    if option == OPTION_GO && !query.block_sizes && export.sizes.minimum > 1 {
        return refuse(option, Refusal::BlockSizeRequired, "ask for the block sizes and keep to them");
    }
    let bytes = options::encode_description(option, export.size, export.flags(), export.sizes);
    if option == OPTION_GO { Step::Start(bytes) } else { Step::Answer(bytes) }
}

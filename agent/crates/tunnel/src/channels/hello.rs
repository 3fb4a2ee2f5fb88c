//! The first frames of a channel: `ChannelHello` and `Ping` from the dialler, `Pong` or `Fail` back. After them the
//! stream belongs to another layer, so that nothing is read ahead here.

use std::future::poll_fn;
use std::sync::Arc;

use tokio::time::timeout;
use wire::{ChannelHello, Control, DecodeError, Fail};

use super::channel::Channel;
use super::core::{ChannelCore, Slot};
use super::ends::{Input, Output};
use crate::error::{CloseCode, TunnelError, TunnelErrorKind};
use crate::frames;
use crate::greeting::FIRST_FRAME;

/// Why a channel is refused, for people. A stranger learns no more than somebody who invents a migration.
pub(crate) const REFUSED: &str = "no such migration of yours, not this generation, or the channel is open";

async fn frame(input: &mut Input) -> Result<Control, TunnelError> {
    let header = frames::header(input, Some(FIRST_FRAME), FIRST_FRAME).await?;
    let header = header.ok_or_else(|| TunnelError::protocol(DecodeError::Truncated("channel's greeting")))?;
    frames::control(input, header, FIRST_FRAME).await
}

/// The whole greeting may take no longer than a connection's.
async fn bounded<T>(greeting: impl Future<Output = Result<T, TunnelError>>) -> Result<T, TunnelError> {
    timeout(FIRST_FRAME, greeting).await.unwrap_or_else(|late| {
        let what = "the channel's greeting is not finished";
        Err(TunnelError::new(TunnelErrorKind::ChannelLost, what).caused_by(late))
    })
}

/// Dialling side: opens a channel on a fresh stream.
pub(super) async fn ask(
    core: &Arc<ChannelCore>,
    slot: Slot,
    hello: ChannelHello,
    mut input: Input,
    mut output: Output,
) -> Result<Channel, TunnelError> {
    let nonce = u64::from(hello.channel);
    let frames = [Control::ChannelHello(hello).encode(), Control::Ping(nonce).encode()].concat();
    bounded(async {
        output.write_all(frames.into()).await?;
        match frame(&mut input).await? {
            Control::Pong(answer) if answer == nonce => Ok(()),
            Control::Fail(fail) => {
                Err(TunnelError::peer_closed(CloseCode::Failed(fail.code), fail.detail.as_bytes()))
            }
            other => Err(TunnelError::unexpected_frame(other.tag())),
        }
    })
    .await?;
    Ok(Channel::new(core, slot, input, output))
}

/// Accepting side: lets a channel in whose hello was read and is right.
pub(super) async fn answer(
    core: &Arc<ChannelCore>,
    slot: Slot,
    hello: ChannelHello,
    mut input: Input,
    mut output: Output,
) -> Result<(), TunnelError> {
    bounded(async {
        match frame(&mut input).await? {
            Control::Ping(nonce) => output.write_all(Control::Pong(nonce).encode()).await,
            other => Err(TunnelError::unexpected_frame(other.tag())),
        }
    })
    .await?;
    let channel = Channel::new(core, slot, input, output);
    // There is a place for every number, so this fails only when the tunnel is over.
    drop(core.arrivals.try_send((hello, channel)));
    Ok(())
}

/// Accepting side: reads the hello of a QUIC stream, and lets the channel in or says why not.
pub(super) async fn admit(
    core: &Arc<ChannelCore>,
    mut input: Input,
    mut output: Output,
) -> Result<(), TunnelError> {
    let hello = bounded(async {
        match frame(&mut input).await? {
            Control::ChannelHello(hello) => Ok(hello),
            other => Err(TunnelError::unexpected_frame(other.tag())),
        }
    })
    .await?;
    match core.admit(&hello) {
        Ok(slot) => answer(core, slot, hello, input, output).await,
        Err(code) => {
            tracing::info!(peer = %core.peer, channel = hello.channel, ?code, "a channel was refused");
            input.stop(code);
            let fail = Fail { code, detail: REFUSED.to_owned() };
            output.write_all(Control::Fail(fail).encode()).await?;
            poll_fn(|cx| output.poll_finish(cx)).await
        }
    }
}
